package main

import "syscall"

func dieWithUs(attr *syscall.SysProcAttr, s syscall.Signal) { attr.Pdeathsig = s }

// bindToUs has nothing left to do: see dieWithUs.
func bindToUs(int, syscall.Signal) (release func()) { return func() {} }

// asNobody makes a child of root's believe that it is nobody, while its files stay root's: Postgres refuses to run as
// root. The user that it believes to be must exist, and nobody does everywhere.
func asNobody() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: nobody, HostID: 0, Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: nobody, HostID: 0, Size: 1}},
	}
}
