package api

import (
	"crypto/sha256"
	"encoding/base64"
	"regexp"
	"strings"
	"testing"
)

func page(t *testing.T) (html, style string) {
	t.Helper()
	text, style, err := Page()
	if err != nil {
		t.Fatal(err)
	}
	return string(text), style
}

// The page shows every operation and every object, and its links lead somewhere.
func TestPageShowsEverything(t *testing.T) {
	html, _ := page(t)
	doc := load(t)
	ids := map[string]int{}
	for _, m := range regexp.MustCompile(` id="([^"]*)"`).FindAllStringSubmatch(html, -1) {
		ids[m[1]]++
	}
	for id, n := range ids {
		if n > 1 {
			t.Errorf("the id %s is there %d times", id, n)
		}
	}
	for path, item := range doc.Paths.Map() {
		for method, o := range item.Operations() {
			if ids[o.OperationID] == 0 || !strings.Contains(html, "<code>"+path+"</code>") {
				t.Errorf("%s %s is not there", method, path)
			}
		}
	}
	for name, s := range doc.Components.Schemas {
		if len(s.Value.Properties) > 0 && ids[name] == 0 {
			t.Errorf("%s is not there", name)
		}
		for field := range s.Value.Properties {
			if !strings.Contains(html, "<code>"+field+"</code>") {
				t.Errorf("%s of %s is not there", field, name)
			}
		}
	}
	links := regexp.MustCompile(`href="([^"]*)"`).FindAllStringSubmatch(html, -1)
	for _, m := range links {
		if id, ok := strings.CutPrefix(m[1], "#"); ok && ids[id] == 0 || !ok && m[1] != "openapi.json" {
			t.Errorf("a link leads to %s", m[1])
		}
	}
	if len(links) < 50 {
		t.Errorf("only %d links", len(links))
	}
	for _, text := range []string{
		"curl &#34;$API/compute/containers&#34; \\\n  -H &#34;Authorization: Bearer $TOKEN&#34; \\\n" +
			"  -H &#34;Content-Type: application/json&#34; \\\n  -d &#39;{\n  &#34;name&#34;: &#34;dev-box&#34;,",
		"curl -X POST &#34;$API/compute/containers/a1b2c3d4/start&#34; \\\n  -H &#34;Authorization",
		"curl -X DELETE &#34;$API/compute/ssh-keys/1&#34;",
		"curl &#34;$API/healthz&#34;</pre>",
		"websocat",
		"Not served yet",
		"array of whole numbers",
		"<td>409</td><td><code>limit_reached</code></td>",
	} {
		if !strings.Contains(html, text) {
			t.Errorf("%q is not there", text)
		}
	}
	words := regexp.MustCompile(`(?s)<pre>.*?</pre>|<style>.*?</style>|<[^>]*>`).ReplaceAllString(html, "")
	if m := regexp.MustCompile("[^\n]*(`|\\*\\*|\\]\\()[^\n]*").FindString(words); m != "" {
		t.Errorf("this is left as it was written: %s", m)
	}
}

// The page loads nothing, runs nothing, and its one style is what its policy lets in.
func TestPageIsAlone(t *testing.T) {
	html, source := page(t)
	for _, bad := range []string{
		"<script", "<link", "<img", "<iframe", "@import", "url(", "style=", " on", "javascript:", "src=",
	} {
		for _, m := range regexp.MustCompile(`<[^>]*>|(?s)<style>.*?</style>`).FindAllString(html, -1) {
			if strings.Contains(m, bad) {
				t.Errorf("%s has %s", m, bad)
			}
		}
	}
	styles := regexp.MustCompile(`(?s)<style>(.*?)</style>`).FindAllStringSubmatch(html, -1)
	if len(styles) != 1 {
		t.Fatalf("%d styles", len(styles))
	}
	sum := sha256.Sum256([]byte(styles[0][1]))
	if want := "'sha256-" + base64.StdEncoding.EncodeToString(sum[:]) + "'"; source != want {
		t.Errorf("the source is %s, the style's %s", source, want)
	}
}

func TestMarkdown(t *testing.T) {
	for text, want := range map[string]string{
		"":                          "",
		"one\ntwo\n\nthree\n":       "<p>one\ntwo</p>\n<p>three</p>\n",
		"- a\n- b\n  more\n\nafter": "<ul><li>a</li><li>b\n  more</li></ul>\n<p>after</p>\n",
		"`a**b**` and **c**":        "<p><code>a**b**</code> and <strong>c</strong></p>\n",
		"[here](#errors) [x](y z)":  `<p><a href="#errors">here</a> [x](y z)</p>` + "\n",
		"<script>&\"'":              "<p>&lt;script&gt;&amp;&#34;&#39;</p>\n",
		"`<b>`":                     "<p><code>&lt;b&gt;</code></p>\n",
		"a * b ` c":                 "<p>a * b ` c</p>\n",
	} {
		if got := string(markdown(text)); got != want {
			t.Errorf("%q becomes %q, want %q", text, got, want)
		}
	}
	if got := phrase(" a `b` "); got != "a <code>b</code>" {
		t.Errorf("%q", got)
	}
}
