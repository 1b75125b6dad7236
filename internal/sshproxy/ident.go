package sshproxy

import (
	"bytes"
	"encoding/binary"
	"slices"
	"strconv"
	"strings"

	gossh "golang.org/x/crypto/ssh"
)

// Sizes of what a client sends before keys are agreed on.
const (
	maxIdentification = 255   // RFC 4253, section 4.2, the line's end included
	maxKexInit        = 35000 // RFC 4253, section 6.1: what every implementation must be able to read
)

// identification returns the client's identification string in b (RFC 4253, section 4.2), without its line end, and
// whether the line is complete. A line that is complete and no identification, or too long, is bad.
func identification(b []byte) (line string, complete, bad bool) {
	i := bytes.IndexByte(b, '\n')
	switch {
	case i < 0 && len(b) >= maxIdentification, i >= maxIdentification:
		return "", false, true
	case i < 0:
		// Something else than SSH shows at once; it need not be waited for.
		return "", false, !bytes.HasPrefix(b, []byte("SSH-")[:min(len(b), 4)])
	}
	line = strings.TrimSuffix(string(b[:i]), "\r")
	if !strings.HasPrefix(line, "SSH-2.0-") && !strings.HasPrefix(line, "SSH-1.99-") {
		return "", true, true
	}
	return line, true, false
}

// knowsGCM says whether the client of that identification is known to have AES-GCM: OpenSSH from 6.2 on.
func knowsGCM(line string) bool {
	_, software, ok := strings.Cut(strings.TrimPrefix(line, "SSH-"), "-")
	if !ok {
		return false
	}
	version, ok := strings.CutPrefix(software, "OpenSSH_")
	if !ok {
		return false
	}
	version = strings.TrimPrefix(version, "for_Windows_")
	major, rest, ok := strings.Cut(version, ".")
	if !ok {
		return false
	}
	end := strings.IndexFunc(rest, func(r rune) bool { return r < '0' || r > '9' })
	if end >= 0 {
		rest = rest[:end]
	}
	x, err := strconv.ParseUint(major, 10, 16)
	if err != nil {
		return false
	}
	y, err := strconv.ParseUint(rest, 10, 16)
	return err == nil && (x > 6 || x == 6 && y >= 2)
}

// gcm are the ciphers of which an x/crypto server is fastest at one, by a factor of two.
func gcm() []string { return []string{gossh.CipherAES128GCM, gossh.CipherAES256GCM} }

// offersGCM reads a client's first packet, SSH_MSG_KEXINIT (RFC 4253, section 7.1), and says whether it offers AES-GCM
// in both directions. Known is false when b is no such packet, or not all of it.
func offersGCM(b []byte) (offers, known bool) {
	payload, ok := firstPacket(b)
	if !ok || len(payload) < 17 || payload[0] != 20 {
		return false, false
	}
	rest := payload[17:] // the message number and the cookie
	var lists [4][]string
	for i := range lists { // key exchanges, host keys, ciphers to the server, ciphers from it
		var list []byte
		if list, rest, ok = cutString(rest); !ok {
			return false, false
		}
		lists[i] = strings.Split(string(list), ",")
	}
	has := func(list []string) bool {
		return slices.ContainsFunc(list, func(s string) bool { return slices.Contains(gcm(), s) })
	}
	return has(lists[2]) && has(lists[3]), true
}

// firstPacket returns the payload of the unencrypted packet (RFC 4253, section 6) at the beginning of b.
func firstPacket(b []byte) ([]byte, bool) {
	if len(b) < 5 {
		return nil, false
	}
	length, padding := binary.BigEndian.Uint32(b), uint32(b[4])
	if length > maxKexInit || uint32(len(b)-4) < length || length < 1+padding {
		return nil, false
	}
	return b[5 : 4+length-padding], true
}

// cutString reads a string of RFC 4251, section 5.
func cutString(b []byte) (s, rest []byte, ok bool) {
	if len(b) < 4 {
		return nil, nil, false
	}
	n := binary.BigEndian.Uint32(b)
	if uint64(n) > uint64(len(b)-4) {
		return nil, nil, false
	}
	return b[4 : 4+n], b[4+n:], true
}
