package httpapi

import (
	"crypto/sha256"
	"fmt"
	"net/http"
	"sync"

	"github.com/gofiber/fiber/v2"

	openapi "berth/api"
	"berth/internal/compute"
)

// form is one form of the API's document, as it is sent.
type form struct {
	contentType string
	policy      string // Content-Security-Policy; empty is everybody's
	tag         string
	body        []byte
}

func newForm(contentType, policy string, body []byte) form {
	sum := sha256.Sum256(body)
	return form{contentType, policy, fmt.Sprintf(`"%x"`, sum[:16]), body}
}

func documentForm() (form, error) {
	body, err := openapi.JSON()
	return newForm(fiber.MIMEApplicationJSON, "", body), err
}

// pageForm lets the page's own style in, and nothing else.
func pageForm() (form, error) {
	body, style, err := openapi.Page()
	return newForm(fiber.MIMETextHTMLCharsetUTF8, nothingElse+"; style-src "+style, body), err
}

// serveForm answers with what render returns, which is asked once, when somebody wants it. A client that has it already
// is told so: it changes with the program alone, but may do so at any time.
func serveForm(render func() (form, error)) fiber.Handler {
	render = sync.OnceValues(render)
	return func(c *fiber.Ctx) error {
		f, err := render()
		if err != nil {
			return compute.Internal("render the API's document", err)
		}
		c.Set(fiber.HeaderETag, f.tag)
		c.Set(fiber.HeaderCacheControl, "no-cache") // which means: ask each time whether the tag still holds
		if f.policy != "" {
			c.Set(fiber.HeaderContentSecurityPolicy, f.policy) // a 304 has it too: its headers replace those that were kept
		}
		if c.Fresh() {
			c.Status(http.StatusNotModified)
			return nil
		}
		c.Set(fiber.HeaderContentType, f.contentType)
		return c.Send(f.body)
	}
}
