package httpapi

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"time"
)

// raw sends text as it is, and reads one answer.
func raw(addr, text string) (reply, error) {
	c, err := net.Dial("tcp", addr)
	if err != nil {
		return reply{}, err
	}
	defer c.Close()
	return rawOn(c, text)
}

func rawOn(c net.Conn, text string) (reply, error) {
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		return reply{}, err
	}
	if _, err := io.WriteString(c, text); err != nil {
		return reply{}, err
	}
	return readReply(bufio.NewReader(c))
}

func readReply(b *bufio.Reader) (reply, error) {
	resp, err := http.ReadResponse(b, nil)
	if err != nil {
		return reply{}, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return reply{resp.StatusCode, resp.Header, string(body), resp.Close}, err
}
