package agent

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	lastSignal   = 64
	sigsetBytes  = 8
	ignored      = 1 // SIG_IGN
	killOrStop   = 1<<unix.SIGKILL | 1<<unix.SIGSTOP
	defaultState = 0 // SIG_DFL
)

// sigaction is the kernel's, with room for every architecture's order of fields after the first.
type sigaction struct {
	handler uintptr
	rest    [3]uintptr
}

// DefaultSignals ends the inheritance of ignored signals: whoever started the engine may have had some (make leaves
// glibc's 32 and 33 so, a shell's background jobs SIGINT and SIGQUIT), and every program in the container would have
// them too. The runtime has no word for it, and passes over 32.
func DefaultSignals() {
	for sig := uintptr(1); sig <= lastSignal; sig++ {
		if killOrStop&(1<<sig) != 0 {
			continue
		}
		var now sigaction
		_, _, errno := unix.RawSyscall6(unix.SYS_RT_SIGACTION, sig, 0, uintptr(unsafe.Pointer(&now)), sigsetBytes, 0, 0)
		if errno != 0 || now.handler != ignored {
			continue
		}
		initial := sigaction{handler: defaultState}
		_, _, _ = unix.RawSyscall6(unix.SYS_RT_SIGACTION, sig, uintptr(unsafe.Pointer(&initial)), 0, sigsetBytes, 0, 0)
	}
}
