// An HTTP server and client for the integration tests: `gohttp serve ADDR`, `gohttp get URL COUNT` (concurrent, checks every byte).
package main

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"sync"
)

func pattern(i int) byte { return byte(i*7 + i>>8 + i>>16) }

func serve(w http.ResponseWriter, r *http.Request) {
	n, err := strconv.Atoi(r.URL.Query().Get("n"))
	if err != nil || n < 0 {
		http.Error(w, "n must be a number", http.StatusBadRequest)
		return
	}
	w.Header().Set("Content-Length", strconv.Itoa(n))
	buffer := make([]byte, 32768)
	for at := 0; at < n; {
		part := len(buffer)
		if n-at < part {
			part = n - at
		}
		for i := 0; i < part; i++ {
			buffer[i] = pattern(at + i)
		}
		if _, err := w.Write(buffer[:part]); err != nil {
			return
		}
		at += part
	}
}

func fetch(url string) (int, error) {
	response, err := http.Get(url)
	if err != nil {
		return 0, err
	}
	defer response.Body.Close()
	data, err := io.ReadAll(response.Body)
	if err != nil {
		return 0, err
	}
	for i, b := range data {
		if b != pattern(i) {
			return 0, fmt.Errorf("byte %d of %d is wrong", i, len(data))
		}
	}
	return len(data), nil
}

func get(url string, count int) error {
	var wait sync.WaitGroup
	var lock sync.Mutex
	total := 0
	var failure error
	for i := 0; i < count; i++ {
		wait.Add(1)
		go func() {
			defer wait.Done()
			n, err := fetch(url)
			lock.Lock()
			defer lock.Unlock()
			total += n
			if err != nil {
				failure = err
			}
		}()
	}
	wait.Wait()
	if failure == nil {
		fmt.Printf("%d answers, %d bytes, all right\n", count, total)
	}
	return failure
}

func run() error {
	if len(os.Args) == 3 && os.Args[1] == "serve" {
		http.HandleFunc("/bytes", serve)
		return http.ListenAndServe(os.Args[2], nil)
	}
	if len(os.Args) == 4 && os.Args[1] == "get" {
		count, err := strconv.Atoi(os.Args[3])
		if err != nil {
			return err
		}
		return get(os.Args[2], count)
	}
	return fmt.Errorf("usage: gohttp serve ADDR | gohttp get URL COUNT")
}

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "gohttp:", err)
		os.Exit(1)
	}
}
