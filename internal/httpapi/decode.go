package httpapi

import (
	"bytes"
	"encoding/json"
	"errors"
	"maps"
	"mime"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/gofiber/fiber/v2"

	"berth/internal/compute"
)

// object is a JSON object whose fields are taken out by name and type. The first mistake is kept for done, so that a
// reader takes all its fields and then asks once. A null is a field that is not there.
type object struct {
	fields map[string]json.RawMessage
	known  []string // those asked for
	err    error
}

// body reads the request's body: one JSON object, in UTF-8, sent as application/json.
func body(c *fiber.Ctx) (*object, error) {
	h := &c.Request().Header
	if err := checkType(string(h.ContentType()), string(h.ContentEncoding())); err != nil {
		return nil, err
	}
	return decode(c.Request().Body()) // not c.Body, which would decompress without a bound
}

func checkType(contentType, contentEncoding string) error {
	if contentEncoding != "" && !strings.EqualFold(contentEncoding, "identity") {
		return compute.Errorf(compute.CodeUnsupportedMedia, "Send the body as it is, without a Content-Encoding.")
	}
	media, params, err := mime.ParseMediaType(contentType)
	charset, given := params["charset"]
	if err != nil || media != "application/json" || given && !strings.EqualFold(charset, "utf-8") {
		return compute.Errorf(compute.CodeUnsupportedMedia, "Send JSON, with the header Content-Type: application/json.")
	}
	return nil
}

// decode parses text as one JSON object. It is stricter than encoding/json: a name may not be there twice, and the text
// must be UTF-8 (RFC 8259, sections 4 and 8.1).
func decode(text []byte) (*object, error) {
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
	if k := kind(bytes.TrimSpace(whole)); k != "an object" {
		return nil, compute.Errorf(compute.CodeInvalid, "The body is a JSON object, not %s.", k)
	}
	// What follows reads text that is known to be valid.
	o := &object{fields: make(map[string]json.RawMessage)}
	d := json.NewDecoder(bytes.NewReader(text))
	if _, err := d.Token(); err != nil {
		return nil, compute.Internal("decode a body", err)
	}
	for d.More() {
		token, err := d.Token()
		name, ok := token.(string)
		if err != nil || !ok {
			return nil, compute.Internal("decode a body", err)
		}
		if _, twice := o.fields[name]; twice {
			return nil, compute.Invalid(clip(name, 64), "The field %q is there twice.", clip(name, 64))
		}
		var value json.RawMessage
		if err := d.Decode(&value); err != nil {
			return nil, compute.Internal("decode a body", err)
		}
		o.fields[name] = value
	}
	return o, nil
}

// kind names the type of a valid JSON value.
func kind(value []byte) string {
	switch value[0] {
	case '{':
		return "an object"
	case '[':
		return "an array"
	case '"':
		return "a string"
	case 't', 'f':
		return "a boolean"
	case 'n':
		return "null"
	default:
		return "a number"
	}
}

// take returns a field's value, or nil.
func (o *object) take(name string) []byte {
	o.known = append(o.known, name)
	v := bytes.TrimSpace(o.fields[name])
	if len(v) == 0 || v[0] == 'n' {
		return nil
	}
	return v
}

func (o *object) fault(err error) {
	if o.err == nil {
		o.err = err
	}
}

func (o *object) wrongType(name, want string, got []byte) {
	o.fault(compute.Invalid(name, "%s is %s, not %s.", name, want, kind(got)))
}

// text returns a string field, and whether it was there.
func (o *object) text(name string) (string, bool) {
	v := o.take(name)
	if v == nil {
		return "", false
	}
	return o.readText(name, "a string", v), true
}

func (o *object) readText(name, want string, v []byte) string {
	if v[0] != '"' {
		o.wrongType(name, want, v)
		return ""
	}
	var s string
	if err := json.Unmarshal(v, &s); err != nil || halfSurrogate(v) {
		o.fault(compute.Invalid(name, "%s has a \\u escape that is half a character.", name))
	}
	return s
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

// boolean returns a boolean field, and whether it was there.
func (o *object) boolean(name string) (value, ok bool) {
	v := o.take(name)
	if v == nil {
		return false, false
	}
	if k := kind(v); k != "a boolean" {
		o.fault(compute.Invalid(name, "%s is true or false, not %s.", name, k))
	}
	return v[0] == 't', true
}

// integer returns an integer field, or nil.
func (o *object) integer(name string) *int {
	v := o.take(name)
	if v == nil {
		return nil
	}
	n := int(o.readInteger(name, "a whole number", v, strconv.IntSize))
	return &n
}

func (o *object) readInteger(name, want string, v []byte, bits int) int64 {
	if kind(v) != "a number" {
		o.wrongType(name, want, v)
		return 0
	}
	n, err := strconv.ParseInt(string(v), 10, bits)
	switch {
	case errors.Is(err, strconv.ErrRange):
		o.fault(compute.Invalid(name, "A number in %s is far out of range.", name))
	case err != nil:
		o.fault(compute.Invalid(name, "%s is %s, written without a point or an exponent.", name, want))
	}
	return n
}

// list returns an array field's elements, none of them null; nil where the field is not there.
func (o *object) list(name, want string) [][]byte {
	v := o.take(name)
	if v == nil {
		return nil
	}
	if v[0] != '[' {
		o.wrongType(name, want, v)
		return nil
	}
	var raw []json.RawMessage
	if err := json.Unmarshal(v, &raw); err != nil {
		o.fault(compute.Internal("decode an array", err))
	}
	elements := make([][]byte, len(raw))
	for i, e := range raw {
		elements[i] = bytes.TrimSpace(e)
	}
	return elements
}

// integers returns an array of integers; nil where the field is not there.
func (o *object) integers(name string) []int64 {
	const want = "an array of whole numbers"
	list := o.list(name, want)
	if list == nil {
		return nil
	}
	out := make([]int64, len(list))
	for i, v := range list {
		if kind(v) != "a number" {
			o.fault(compute.Invalid(name, "%s is %s; number %d in it is %s.", name, want, i+1, kind(v)))
			return nil
		}
		out[i] = o.readInteger(name, want, v, 64)
	}
	return out
}

// texts returns an array of strings; nil where the field is not there.
func (o *object) texts(name string) []string {
	const want = "an array of strings"
	list := o.list(name, want)
	if list == nil {
		return nil
	}
	out := make([]string, len(list))
	for i, v := range list {
		if v[0] != '"' {
			o.fault(compute.Invalid(name, "%s is %s; number %d in it is %s.", name, want, i+1, kind(v)))
			return nil
		}
		out[i] = o.readText(name, want, v)
	}
	return out
}

// done returns the first mistake. A field that nobody asked for is one: a typing error would otherwise make a container
// other than the one that was meant, such as one that forgets a mount path.
func (o *object) done() error {
	if o.err != nil {
		return o.err
	}
	for _, name := range slices.Sorted(maps.Keys(o.fields)) {
		if !slices.Contains(o.known, name) {
			name = clip(name, 64)
			return compute.Invalid(name, "There is no field %q here; the fields are %s.", name, strings.Join(o.known, ", "))
		}
	}
	return nil
}
