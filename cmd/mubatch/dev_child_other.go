//go:build !linux

package main

import (
	"fmt"
	"os/exec"
	"syscall"
)

func dieWithUs(*syscall.SysProcAttr, syscall.Signal) {}

// bindToUs leaves somebody behind who signals the child when we are gone: our end of the pipe that it reads from is
// closed then. A kill between the child's start and this is not seen; there is no way to start both at once here.
func bindToUs(pid int, s syscall.Signal) (release func()) {
	watchdog := exec.Command("/bin/sh", "-c", fmt.Sprintf("read released || kill -%d %d", int(s), pid))
	watchdog.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	stdin, err := watchdog.StdinPipe()
	if err != nil || watchdog.Start() != nil {
		return func() {}
	}
	return func() {
		fmt.Fprintln(stdin)
		watchdog.Wait()
	}
}

// asNobody is nil: only Linux has user namespaces.
func asNobody() *syscall.SysProcAttr { return nil }
