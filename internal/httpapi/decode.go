package httpapi

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"mime"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/gofiber/fiber/v2"

	"berth/internal/compute"
)

// body returns the request's body as the type that the document has for it. It follows the operation's check, which has
// refused what the type cannot hold.
func body[T any](c *fiber.Ctx) (T, error) { return typed[T](c.Request().Body()) }

func typed[T any](text []byte) (T, error) {
	var v T
	if err := json.Unmarshal(text, &v); err != nil {
		return v, compute.Internal("read a body that was checked", err)
	}
	return v, nil
}

func checkType(contentType, contentEncoding string) error {
	if contentEncoding != "" && !strings.EqualFold(contentEncoding, "identity") {
		return compute.Errorf(compute.CodeUnsupportedMedia, "Send the body as it is, without a Content-Encoding.")
	}
	media, params, err := mime.ParseMediaType(contentType)
	charset, given := params["charset"]
	if err != nil || media != fiber.MIMEApplicationJSON || given && !strings.EqualFold(charset, "utf-8") {
		return compute.Errorf(compute.CodeUnsupportedMedia, "Send JSON, with the header Content-Type: application/json.")
	}
	return nil
}

// decode parses text as one JSON object, numbers as they are written. It is stricter than encoding/json: a name may not be
// there twice, the text must be UTF-8, and an escape must be a whole character (RFC 8259, sections 4, 8.1 and 8.2).
func decode(text []byte) (map[string]any, error) {
	if len(bytes.TrimSpace(text)) == 0 {
		return nil, compute.Errorf(compute.CodeInvalid, "The body is empty; send a JSON object.")
	}
	if !utf8.Valid(text) {
		return nil, compute.Errorf(compute.CodeInvalid, "The body is not UTF-8.")
	}
	var whole json.RawMessage
	if err := json.Unmarshal(text, &whole); err != nil {
		var syntax *json.SyntaxError
		if errors.As(err, &syntax) {
			const format = "The body is not valid JSON: %v (at byte %d)."
			return nil, compute.Errorf(compute.CodeInvalid, format, syntax, syntax.Offset)
		}
		return nil, compute.Errorf(compute.CodeInvalid, "The body is not valid JSON.")
	}
	// What follows reads text that is known to be valid.
	p := parser{text: text, d: json.NewDecoder(bytes.NewReader(text))}
	p.d.UseNumber()
	v, err := p.value("", 1)
	if err != nil {
		return nil, err
	}
	o, ok := v.(map[string]any)
	if !ok {
		return nil, compute.Errorf(compute.CodeInvalid, "The body is a JSON object, not %s.", article(kindOf(v)))
	}
	return o, nil
}

// parser reads valid JSON, token by token.
type parser struct {
	text []byte
	d    *json.Decoder
}

// maxNesting is how deep values may lie in one another; what the API takes lies 2 deep. It bounds the stack, of which 64 kB
// of brackets would take 4 MB.
const maxNesting = 32

// value reads the next value, which is in field and as deep as depth.
func (p *parser) value(field string, depth int) (any, error) {
	began := p.d.InputOffset()
	token, err := p.d.Token()
	if err != nil {
		return nil, compute.Internal("decode a body", err)
	}
	switch t := token.(type) {
	case string:
		if halfSurrogate(p.text[began:p.d.InputOffset()]) {
			return nil, compute.Invalid(field, "%s has a \\u escape that is half a character.", cmp.Or(field, "The body"))
		}
		return t, nil
	case json.Delim:
		if depth > maxNesting {
			return nil, compute.Invalid(field, "Values lie over %d deep in one another; nothing here needs that.", maxNesting)
		}
		if t == '[' {
			return p.array(field, depth)
		}
		return p.object(field, depth)
	default:
		return t, nil
	}
}

func (p *parser) array(field string, depth int) (any, error) {
	list := []any{}
	for p.d.More() {
		v, err := p.value(field, depth+1)
		if err != nil {
			return nil, err
		}
		list = append(list, v)
	}
	return list, p.end()
}

func (p *parser) object(field string, depth int) (any, error) {
	object := map[string]any{}
	for p.d.More() {
		token, err := p.d.Token()
		name, ok := token.(string)
		if err != nil || !ok {
			return nil, compute.Internal("decode a body", err)
		}
		inner := within(field, name)
		if _, twice := object[name]; twice {
			return nil, compute.Invalid(inner, "The field %q is there twice.", inner)
		}
		if object[name], err = p.value(inner, depth+1); err != nil {
			return nil, err
		}
	}
	return object, p.end()
}

// maxName is how much is told of a name that a client made up.
const maxName = 64

// within names a field of a field. Deep down it stays with the outer one, whose name would grow with every level.
func within(outer, name string) string {
	name = clip(name, maxName)
	switch {
	case outer == "":
		return name
	case len(outer) > maxName:
		return outer
	default:
		return outer + "." + name
	}
}

func (p *parser) end() error {
	if _, err := p.d.Token(); err != nil {
		return compute.Internal("decode a body", err)
	}
	return nil
}

// halfSurrogate says whether a valid JSON string escapes one half of a UTF-16 pair without the other (RFC 8259, section
// 8.2); encoding/json would put U+FFFD in its place without a word.
func halfSurrogate(v []byte) bool {
	unit := func(i int) uint64 { // the escape at i, or 0
		if i+6 > len(v) || v[i] != '\\' || v[i+1] != 'u' {
			return 0
		}
		n, _ := strconv.ParseUint(string(v[i+2:i+6]), 16, 16)
		return n
	}
	for i := 0; i < len(v); i++ {
		if v[i] != '\\' {
			continue
		}
		switch u := unit(i); {
		case u >= 0xDC00 && u <= 0xDFFF:
			return true
		case u >= 0xD800 && u <= 0xDBFF:
			if low := unit(i + 6); low < 0xDC00 || low > 0xDFFF {
				return true
			}
			i += 11
		default:
			i++ // past what is escaped, which may be a backslash
		}
	}
	return false
}
