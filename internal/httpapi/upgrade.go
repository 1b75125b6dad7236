package httpapi

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"runtime/debug"
	"strings"

	"github.com/gofiber/contrib/websocket"
	"github.com/gofiber/fiber/v2"
	"github.com/valyala/fasthttp"

	"berth/internal/compute"
)

const (
	webSocketVersion = "13" // RFC 6455, section 4.1
	// readBuffer holds what clients send, which is next to nothing; writeBuffer holds a frame's header and a small message,
	// and is held only while one is written.
	readBuffer  = 256
	writeBuffer = 1024
)

var (
	errNoUpgrade = compute.Errorf(codeUpgrade,
		"This is a WebSocket; open it with a WebSocket client, such as websocat or a browser's WebSocket.")
	errVersion = compute.Errorf(codeBadRequest, "WebSockets here are of version %s (Sec-WebSocket-Version).", webSocketVersion)
	errNoKey   = compute.Errorf(codeBadRequest, "The handshake's Sec-WebSocket-Key is not 16 bytes in base64.")
)

// checkHandshake refuses a request that does not ask for a WebSocket as RFC 6455, section 4.2.1, says.
func checkHandshake(fctx *fasthttp.RequestCtx) error {
	h, answer := &fctx.Request.Header, &fctx.Response.Header
	// Upgrade means nothing in HTTP/1.0 (RFC 9110, section 7.8), or where the connection is to be closed.
	if !fctx.IsGet() || !h.IsHTTP11() || !hasToken(h, fiber.HeaderConnection, "upgrade") ||
		!hasToken(h, fiber.HeaderUpgrade, "websocket") {
		answer.Set(fiber.HeaderUpgrade, "websocket")
		answer.Set(fiber.HeaderConnection, "Upgrade")
		return errNoUpgrade
	}
	if v := h.PeekAll(fiber.HeaderSecWebSocketVersion); len(v) != 1 || string(v[0]) != webSocketVersion {
		answer.Set(fiber.HeaderSecWebSocketVersion, webSocketVersion)
		return errVersion
	}
	keys := h.PeekAll(fiber.HeaderSecWebSocketKey)
	if len(keys) != 1 {
		return errNoKey
	}
	if nonce, err := base64.StdEncoding.DecodeString(string(keys[0])); err != nil || len(nonce) != 16 {
		return errNoKey
	}
	return nil
}

// hasToken says whether a header that is a list of tokens has one, in whatever case.
func hasToken(h *fasthttp.RequestHeader, name, token string) bool {
	for _, line := range h.PeekAll(name) {
		for word := range bytes.SplitSeq(line, []byte(",")) {
			if strings.EqualFold(string(bytes.TrimSpace(word)), token) {
				return true
			}
		}
	}
	return false
}

// upgrade answers a checked handshake and then lets serve have the WebSocket, in a goroutine of the HTTP server's. The
// connection is closed when serve returns; ws is not to be used after that, since it is used again for others. Origin is
// not checked here: see findToken.
func (s *Server) upgrade(c *fiber.Ctx, serve func(ws *websocket.Conn)) error {
	fctx := c.Context()
	shed(&fctx.Request)
	handler := websocket.New(func(ws *websocket.Conn) {
		// The HTTP server keeps these until serve returns, and nobody needs them any more.
		fctx.Request, fctx.Response = fasthttp.Request{}, fasthttp.Response{}
		serve(ws)
	}, websocket.Config{
		ReadBufferSize: readBuffer, WriteBufferSize: writeBuffer, WriteBufferPool: &s.writeBuffers,
		RecoverHandler: func(*websocket.Conn) { // the library's own would send the panic to the client
			if v := recover(); v != nil {
				s.log.Error("panic on a WebSocket", "err", fmt.Sprintf("%v\n%s", v, debug.Stack()))
			}
		},
	})
	if err := handler(c); err != nil {
		return compute.Internal("upgrade to a WebSocket", err) // checkHandshake has seen to everything that it checks
	}
	return nil
}

// shed takes out of a handshake what the upgrade does not need: the library keeps a copy of all headers, cookies and the
// query for as long as the WebSocket is open, secrets too.
func shed(r *fasthttp.Request) {
	var names []string
	r.Header.VisitAll(func(name, _ []byte) {
		if n := string(name); !strings.EqualFold(n, fiber.HeaderSecWebSocketKey) {
			names = append(names, n)
		}
	})
	for _, n := range names {
		r.Header.Del(n)
	}
	r.URI().QueryArgs().Reset()
	r.Header.Set(fiber.HeaderConnection, "Upgrade") // in one line, whatever the client sent
	r.Header.Set(fiber.HeaderUpgrade, "websocket")
	r.Header.Set(fiber.HeaderSecWebSocketVersion, webSocketVersion)
}
