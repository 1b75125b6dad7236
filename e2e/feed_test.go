package e2e_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/fasthttp/websocket"
	"github.com/rogpeppe/go-internal/testscript"
)

// feed [STATUS] NAME PATH [HEADER:VALUE…] opens a WebSocket, as a program that knows nothing of Berth does. With a status the
// handshake must be refused with it, and the answer is stdout and what problem reads.
func cmdFeed(s *script, ts *testscript.TestScript, neg bool, args []string) error {
	want := http.StatusSwitchingProtocols
	if len(args) > 0 {
		if n, err := strconv.Atoi(args[0]); err == nil {
			want, args = n, args[1:]
		}
	}
	if neg || len(args) < 2 || s.me == nil {
		return errUsage
	}
	h := http.Header{}
	for _, line := range args[2:] {
		name, value, ok := strings.Cut(line, ":")
		if !ok {
			return errUsage
		}
		h.Add(name, strings.TrimSpace(value))
	}
	address := "ws" + strings.TrimPrefix(s.me.on.ready.APIURL, "http") + args[1]
	ws, resp, err := websocket.DefaultDialer.Dial(address, h)
	if resp == nil {
		return err
	}
	if resp.StatusCode != want {
		return fmt.Errorf("status %d, want %d", resp.StatusCode, want)
	}
	if err != nil {
		if s.answer, err = io.ReadAll(resp.Body); err == nil {
			_, err = ts.Stdout().Write(s.answer)
		}
		return err
	}
	ts.Defer(func() { ws.Close() })
	if s.feeds == nil {
		s.feeds = map[string]*websocket.Conn{}
	}
	s.feeds[args[0]] = ws
	return nil
}

// hears NAME TYPE reads the next message of a feed, which must be of that type; its data is stdout, and what json reads. hears
// NAME close CODE reads the goodbye instead; its reason is stdout.
func cmdHears(s *script, ts *testscript.TestScript, neg bool, args []string) error {
	closing := len(args) == 3 && args[1] == "close"
	if neg || len(args) != 2 && !closing || s.feeds[args[0]] == nil {
		return errUsage
	}
	ws := s.feeds[args[0]]
	if err := ws.SetReadDeadline(time.Now().Add(statusLimit)); err != nil {
		return err
	}
	_, text, err := ws.ReadMessage()
	var bye *websocket.CloseError
	if errors.As(err, &bye) && closing && strconv.Itoa(bye.Code) == args[2] {
		_, err := fmt.Fprintln(ts.Stdout(), bye.Text)
		return err
	}
	if err != nil {
		return err
	}
	var m struct {
		Type string
		Data json.RawMessage
	}
	if err := json.Unmarshal(text, &m); err != nil || m.Type != args[1] {
		return fmt.Errorf("heard %s (%v), want %v", text, err, args[1:])
	}
	s.answer = m.Data
	_, err = fmt.Fprintf(ts.Stdout(), "%s\n", m.Data)
	return err
}
