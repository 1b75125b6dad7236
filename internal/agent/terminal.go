package agent

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// terminal is a pseudo-terminal.
type terminal struct {
	master, slave *os.File
	term          string
}

// openTerminal opens a pseudo-terminal that belongs to the account, with the client's size and modes (RFC 4254,
// sections 6.2 and 8).
func openTerminal(a account, term string, size windowSize, modes []byte) (*terminal, error) {
	settings, err := parseModes(modes)
	if err != nil {
		return nil, err
	}
	t, err := newTerminal(term)
	if err != nil {
		return nil, fmt.Errorf("open a terminal: %w", err)
	}
	if os.Geteuid() == 0 {
		// The group tty, with which write(1) reaches people, comes with the mount.
		err = t.slave.Chown(int(a.uid), -1)
	}
	if err == nil {
		err = t.resize(size)
	}
	if err == nil {
		err = t.apply(settings)
	}
	if err != nil {
		t.close()
		return nil, fmt.Errorf("set a terminal up: %w", err)
	}
	return t, nil
}

// newTerminal opens both ends. The master is the runtime poller's, so that a read of it can be ended; the slave blocks,
// as programs expect of their terminal. It is opened through the master, not by a name that the container could have
// changed.
func newTerminal(term string) (*terminal, error) {
	master, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: "/dev/ptmx", Err: err}
	}
	var slave uintptr
	number, err := unix.IoctlGetUint32(master, unix.TIOCGPTN)
	if err == nil {
		err = unix.IoctlSetPointerInt(master, unix.TIOCSPTLCK, 0)
	}
	if err == nil {
		slave, err = ioctl(master, unix.TIOCGPTPEER, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC)
	}
	if err != nil {
		_ = unix.Close(master)
		return nil, err
	}
	return &terminal{
		master: os.NewFile(uintptr(master), "/dev/ptmx"), term: term,
		slave: os.NewFile(slave, "/dev/pts/"+strconv.FormatUint(uint64(number), 10)),
	}, nil
}

// ioctl is one whose argument and result are numbers.
func ioctl(fd int, request, argument uintptr) (uintptr, error) {
	r, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), request, argument)
	if errno != 0 {
		return 0, errno
	}
	return r, nil
}

func (t *terminal) close() {
	_ = t.master.Close()
	_ = t.slave.Close()
}

// windowSize is in characters and pixels.
type windowSize struct{ Columns, Rows, Width, Height uint32 }

func (t *terminal) resize(s windowSize) error {
	return t.control(func(fd int) error {
		return unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{
			Row: clip(s.Rows), Col: clip(s.Columns), Xpixel: clip(s.Width), Ypixel: clip(s.Height),
		})
	})
}

func clip(n uint32) uint16 { return uint16(min(n, 1<<16-1)) }

// control runs f on the master without taking it out of the runtime's poller.
func (t *terminal) control(f func(fd int) error) error {
	raw, err := t.master.SyscallConn()
	if err != nil {
		return err
	}
	var ferr error
	if err := raw.Control(func(fd uintptr) { ferr = f(int(fd)) }); err != nil {
		return err
	}
	return ferr
}

func (t *terminal) apply(settings []mode) error {
	return t.control(func(fd int) error {
		tio, err := unix.IoctlGetTermios(fd, unix.TCGETS)
		if err != nil {
			return err
		}
		for _, m := range settings {
			m.set(tio)
		}
		return unix.IoctlSetTermios(fd, unix.TCSETS, tio)
	})
}

// sendBreak does what a break does on a serial line with these modes (termios(3), BRKINT).
func (t *terminal) sendBreak() error {
	return t.control(func(fd int) error {
		tio, err := unix.IoctlGetTermios(fd, unix.TCGETS)
		if err != nil || tio.Iflag&unix.IGNBRK != 0 {
			return err
		}
		if tio.Iflag&unix.BRKINT == 0 {
			_, err := unix.Write(fd, []byte{0})
			return err
		}
		return unix.IoctlSetInt(fd, unix.TIOCSIG, int(unix.SIGINT))
	})
}

// mode is one of RFC 4254, section 8.
type mode struct {
	op    byte
	value uint32
}

const (
	opEnd      = 0
	opReserved = 160 // and above: not defined, and ends the list
	opISpeed   = 128
	opOSpeed   = 129
	maxModes   = 256
)

// parseModes reads encoded terminal modes.
func parseModes(b []byte) ([]mode, error) {
	var out []mode
	for len(b) > 0 && b[0] != opEnd && b[0] < opReserved {
		if len(b) < 5 {
			return nil, errors.New("terminal modes are cut short")
		}
		if len(out) == maxModes {
			return nil, errors.New("too many terminal modes")
		}
		out = append(out, mode{op: b[0], value: binary.BigEndian.Uint32(b[1:])})
		b = b[5:]
	}
	return out, nil
}

// What the opcodes of RFC 4254, section 8, and RFC 8160 mean here.
var (
	modeChars = map[byte]int{
		1: unix.VINTR, 2: unix.VQUIT, 3: unix.VERASE, 4: unix.VKILL, 5: unix.VEOF, 6: unix.VEOL, 7: unix.VEOL2,
		8: unix.VSTART, 9: unix.VSTOP, 10: unix.VSUSP, 12: unix.VREPRINT, 13: unix.VWERASE, 14: unix.VLNEXT,
		16: unix.VSWTC, 18: unix.VDISCARD,
	}
	modeInput = map[byte]uint32{
		30: unix.IGNPAR, 31: unix.PARMRK, 32: unix.INPCK, 33: unix.ISTRIP, 34: unix.INLCR, 35: unix.IGNCR,
		36: unix.ICRNL, 37: unix.IUCLC, 38: unix.IXON, 39: unix.IXANY, 40: unix.IXOFF, 41: unix.IMAXBEL, 42: unix.IUTF8,
	}
	modeLocal = map[byte]uint32{
		50: unix.ISIG, 51: unix.ICANON, 52: unix.XCASE, 53: unix.ECHO, 54: unix.ECHOE, 55: unix.ECHOK, 56: unix.ECHONL,
		57: unix.NOFLSH, 58: unix.TOSTOP, 59: unix.IEXTEN, 60: unix.ECHOCTL, 61: unix.ECHOKE, 62: unix.PENDIN,
	}
	modeOutput = map[byte]uint32{
		70: unix.OPOST, 71: unix.OLCUC, 72: unix.ONLCR, 73: unix.OCRNL, 74: unix.ONOCR, 75: unix.ONLRET,
	}
	modeControl = map[byte]uint32{90: unix.CS7, 91: unix.CS8, 92: unix.PARENB, 93: unix.PARODD}
)

// set applies the mode; one that means nothing here is passed over, as the RFC asks.
func (m mode) set(t *unix.Termios) {
	if i, ok := modeChars[m.op]; ok {
		c := byte(m.value)
		if m.value >= 255 {
			c = 0 // disabled (_POSIX_VDISABLE)
		}
		t.Cc[i] = c
		return
	}
	for flags, table := range map[*uint32]map[byte]uint32{
		&t.Iflag: modeInput, &t.Lflag: modeLocal, &t.Oflag: modeOutput, &t.Cflag: modeControl,
	} {
		if bit, ok := table[m.op]; ok {
			if *flags &^= bit; m.value != 0 {
				*flags |= bit
			}
		}
	}
	switch m.op {
	case opISpeed:
		t.Ispeed = m.value
	case opOSpeed:
		t.Ospeed = m.value
	}
}
