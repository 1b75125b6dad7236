package api

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

// toJSON writes a YAML node as JSON without spaces. What JSON cannot say, or YAML would guess at, is an error: a date
// wants quotes.
func toJSON(n *yaml.Node) ([]byte, error) {
	w := jsonWriter{}
	if err := w.node(n, 0); err != nil {
		return nil, err
	}
	return w.out.Bytes(), nil
}

// example writes a YAML node as JSON for people: what is in one line there is in one line here.
func example(n *yaml.Node) (string, error) {
	w := jsonWriter{pretty: true}
	if err := w.node(n, 0); err != nil {
		return "", err
	}
	return w.out.String(), nil
}

type jsonWriter struct {
	out    bytes.Buffer
	pretty bool
}

func (w *jsonWriter) node(n *yaml.Node, depth int) error {
	switch n.Kind {
	case yaml.DocumentNode:
		return w.node(n.Content[0], depth)
	case yaml.MappingNode:
		return w.list(n, depth, '{', '}', 2)
	case yaml.SequenceNode:
		return w.list(n, depth, '[', ']', 1)
	case yaml.ScalarNode:
		return w.scalar(n)
	default:
		return fmt.Errorf("line %d: neither anchors nor aliases here", n.Line)
	}
}

// list writes an array or an object; step is how many nodes make one element.
func (w *jsonWriter) list(n *yaml.Node, depth int, open, end byte, step int) error {
	inLine := n.Style&yaml.FlowStyle != 0 || len(n.Content) == 0
	w.out.WriteByte(open)
	for i := 0; i < len(n.Content); i += step {
		if i > 0 {
			w.out.WriteByte(',')
		}
		if w.pretty && !inLine {
			w.line(depth + 1)
		} else if w.pretty && i > 0 {
			w.out.WriteByte(' ')
		}
		if step == 2 {
			if n.Content[i].ShortTag() != "!!str" {
				return fmt.Errorf("line %d: the name %s is no string", n.Content[i].Line, n.Content[i].Value)
			}
			w.text(n.Content[i].Value)
			w.out.WriteByte(':')
			if w.pretty {
				w.out.WriteByte(' ')
			}
		}
		if err := w.node(n.Content[i+step-1], depth+1); err != nil {
			return err
		}
	}
	if w.pretty && !inLine {
		w.line(depth)
	}
	w.out.WriteByte(end)
	return nil
}

func (w *jsonWriter) line(depth int) { w.out.WriteString("\n" + strings.Repeat("  ", depth)) }

func (w *jsonWriter) scalar(n *yaml.Node) error {
	switch tag := n.ShortTag(); {
	case tag == "!!str":
		w.text(n.Value)
	case slices.Contains([]string{"!!int", "!!float", "!!bool", "!!null"}, tag) && json.Valid([]byte(n.Value)):
		w.out.WriteString(n.Value)
	default:
		return fmt.Errorf("line %d: %s is %s, which JSON does not write so", n.Line, n.Value, tag)
	}
	return nil
}

func (w *jsonWriter) text(s string) {
	e := json.NewEncoder(&w.out)
	e.SetEscapeHTML(false)
	_ = e.Encode(s) // a string into memory
	w.out.Truncate(w.out.Len() - 1)
}
