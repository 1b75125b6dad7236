package agentproto

import (
	"encoding/json"
	"errors"
	"fmt"
)

// KindLogs is a channel on which the agent writes what it keeps of the output of the image's command, and then ends. Its
// payload is a Logs. Agents from before it refuse it with ReasonUnknownKind.
const KindLogs = "logs@berth"

// Logs says what to write.
type Logs struct {
	Tail   *int64 `json:"tail,omitempty"`   // at most so many of the last lines that there are; nil: all that is kept
	Follow bool   `json:"follow,omitempty"` // go on with what is written from now on, until nothing more can come
}

// Encode returns l as a payload.
func (l Logs) Encode() ([]byte, error) {
	if err := l.check(); err != nil {
		return nil, err
	}
	return json.Marshal(l)
}

// DecodeLogs reads a payload.
func DecodeLogs(b []byte) (Logs, error) {
	var l Logs
	if err := json.Unmarshal(b, &l); err != nil {
		return Logs{}, fmt.Errorf("%w: logs: %w", errFrame, err)
	}
	if err := l.check(); err != nil {
		return Logs{}, fmt.Errorf("%w: logs: %w", errFrame, err)
	}
	return l, nil
}

func (l Logs) check() error {
	if l.Tail != nil && *l.Tail < 0 {
		return errors.New("a negative number of lines")
	}
	return nil
}
