package httpapi

import (
	"encoding/base64"
	"strconv"
	"strings"

	"github.com/gofiber/fiber/v2"

	"berth/internal/compute"
)

// A list that can grow is answered page by page, in the order of a number that its rows keep for ever. A cursor is the
// list's name and the number of the last row that was seen: it costs the server nothing to hold, no page costs more for
// coming late, and what is added or removed meanwhile makes no other row be seen twice or not at all.

const (
	defaultPage = 100
	longestPage = 1000
)

// pageOf reads which page of a list is asked for: how many rows, after which number.
func pageOf(c *fiber.Ctx, list string) (limit int, after int64, err error) {
	limit = defaultPage
	if text := c.Query("limit"); text != "" {
		if limit, err = strconv.Atoi(text); err != nil || limit < 1 || limit > longestPage {
			return 0, 0, wrongLimit(longestPage)
		}
	}
	if text := c.Query("after"); text != "" {
		if after, err = readCursor(list, text); err != nil {
			return 0, 0, err
		}
	}
	return limit, after, nil
}

func wrongLimit(most int) error {
	return compute.Invalid("limit", "limit is how many a page has at most: send a whole number from 1 to %d.", most)
}

func newCursor(list string, number int64) string {
	return base64.RawURLEncoding.EncodeToString([]byte(list + ":" + strconv.FormatInt(number, 10)))
}

func readCursor(list, text string) (int64, error) {
	plain, err := base64.RawURLEncoding.Strict().DecodeString(text)
	number, ok := strings.CutPrefix(string(plain), list+":")
	n, nerr := strconv.ParseInt(number, 10, 64)
	if err != nil || !ok || nerr != nil || n < 1 || newCursor(list, n) != text {
		return 0, compute.Invalid("after", "after takes the next of the page before, unchanged, of this list; leave it out for the first page.")
	}
	return n, nil
}
