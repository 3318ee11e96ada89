// A client of the container runtime interface for the tests: one call per run, requests and answers as JSON.
//
//	cri SOCKET call Method '{"request": ...}'     the answer as JSON
//	cri SOCKET exec CONTAINER COMMAND...          as kubectl exec -i: streams, the command's exit status
//	cri SOCKET port-forward POD PORT              says the local port on its first line; until its standard input ends
//	cri check FILE...                             manifests, against the API's types; says kind and name of each
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"reflect"
	"strings"

	"github.com/gogo/protobuf/jsonpb"
	"github.com/gogo/protobuf/proto"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	restclient "k8s.io/client-go/rest"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/client-go/transport/spdy"
	"k8s.io/client-go/util/exec"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func call(clients []any, method, text string) error {
	for _, client := range clients {
		m := reflect.ValueOf(client).MethodByName(method)
		if !m.IsValid() {
			continue
		}
		request := reflect.New(m.Type().In(1).Elem())
		if err := jsonpb.UnmarshalString(text, request.Interface().(proto.Message)); err != nil {
			return fmt.Errorf("%s: %w", method, err)
		}
		out := m.Call([]reflect.Value{reflect.ValueOf(context.Background()), request})
		if err, failed := out[1].Interface().(error); failed {
			return err
		}
		return (&jsonpb.Marshaler{}).Marshal(os.Stdout, out[0].Interface().(proto.Message))
	}
	return fmt.Errorf("%s: no such method", method)
}

func execute(client cri.RuntimeServiceClient, container string, command []string) error {
	answer, err := client.Exec(context.Background(), &cri.ExecRequest{ContainerId: container, Cmd: command, Stdin: true, Stdout: true, Stderr: true})
	if err != nil {
		return err
	}
	at, err := url.Parse(answer.Url)
	if err != nil {
		return err
	}
	executor, err := remotecommand.NewSPDYExecutor(&restclient.Config{}, "POST", at)
	if err != nil {
		return err
	}
	return executor.StreamWithContext(context.Background(), remotecommand.StreamOptions{Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr})
}

func forward(client cri.RuntimeServiceClient, pod, port string) error {
	answer, err := client.PortForward(context.Background(), &cri.PortForwardRequest{PodSandboxId: pod})
	if err != nil {
		return err
	}
	at, err := url.Parse(answer.Url)
	if err != nil {
		return err
	}
	transport, upgrader, err := spdy.RoundTripperFor(&restclient.Config{})
	if err != nil {
		return err
	}
	dialer := spdy.NewDialer(upgrader, &http.Client{Transport: transport}, "POST", at)
	stop, ready := make(chan struct{}), make(chan struct{})
	forwarder, err := portforward.NewOnAddresses(dialer, []string{"127.0.0.1"}, []string{"0:" + port}, stop, ready, io.Discard, os.Stderr)
	if err != nil {
		return err
	}
	go func() {
		<-ready
		if ports, err := forwarder.GetPorts(); err == nil {
			fmt.Println(ports[0].Local)
		}
		_, _ = io.Copy(io.Discard, os.Stdin)
		close(stop)
	}()
	return forwarder.ForwardPorts()
}

func run(args []string) error {
	if len(args) > 1 && args[0] == "check" {
		return check(args[1:])
	}
	if len(args) < 4 {
		return errors.New("usage: cri SOCKET call|exec|port-forward ..., cri check FILE...")
	}
	connection, err := grpc.Dial("unix://"+args[0], grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	client := cri.NewRuntimeServiceClient(connection)
	switch args[1] {
	case "call":
		return call([]any{client, cri.NewImageServiceClient(connection)}, args[2], args[3])
	case "exec":
		return execute(client, args[2], args[3:])
	case "port-forward":
		return forward(client, args[2], args[3])
	}
	return fmt.Errorf("%s: no such command", args[1])
}

func main() {
	err := run(os.Args[1:])
	var status exec.CodeExitError
	if errors.As(err, &status) {
		os.Exit(status.Code)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, strings.TrimSpace(err.Error()))
		os.Exit(125)
	}
}
