# Shared by the scripts; sourced from the project's root.

# Builds build/release quietly; shows the compiler's words only where it fails.
build_release() {
  local log
  log=$(mktemp)
  if ! { cmake --preset release && cmake --build build/release; } >"$log" 2>&1; then
    tail -n 40 "$log" >&2
    rm -f "$log"
    echo "the release build failed" >&2
    return 1
  fi
  rm -f "$log"
}
