// Command svg draws a terminal's screen as an SVG picture: text with colours (as `tmux capture-pane -e -p` prints it) on
// standard input, the picture on standard output. It knows the sequences that set colours and weight, and drops others.
package main

import (
	"bufio"
	"bytes"
	"flag"
	"fmt"
	"html"
	"io"
	"log"
	"os"
	"regexp"
	"strconv"
	"strings"
	"unicode/utf8"
)

// Sizes in pixels; a glyph's width is that of most monospace fonts at this size.
const (
	fontSize    = 14
	glyphWidth  = 8.4
	lineHeight  = 19
	margin      = 18
	titleHeight = 34
)

// The eight colours and their bright ones, on a dark ground.
var palette = [16]string{
	"#6e7681", "#ff7b72", "#7ee787", "#e3b341", "#79c0ff", "#d2a8ff", "#56d4dd", "#c9d1d9",
	"#8b949e", "#ffa198", "#a5f3b0", "#f2cc60", "#a5d6ff", "#e2c5ff", "#87e8f0", "#ffffff",
}

const (
	ground     = "#0d1117"
	frame      = "#30363d"
	foreground = "#c9d1d9"
	titleColor = "#8b949e"
)

func main() {
	title := flag.String("title", "", "text in the window's title bar")
	columns := flag.Int("columns", 100, "width of the terminal")
	flag.Parse()
	screen, err := io.ReadAll(os.Stdin)
	if err != nil {
		log.Fatal(err)
	}
	if _, err := os.Stdout.Write(draw(string(screen), *title, *columns)); err != nil {
		log.Fatal(err)
	}
}

// span is text in one style.
type span struct {
	text  string
	color string
	bold  bool
}

var sequence = regexp.MustCompile("\x1b\\[([0-9;:]*)([@-~])|\x1b[()].|\x1b.|[\x00-\x08\x0b-\x1f]")

// spans cuts a line where its style changes. The style goes on to the next line.
func (s *span) spans(line string) []span {
	var out []span
	for line != "" {
		at := sequence.FindStringSubmatchIndex(line)
		if at == nil {
			return append(out, span{line, s.color, s.bold})
		}
		if at[0] > 0 {
			out = append(out, span{line[:at[0]], s.color, s.bold})
		}
		if at[4] >= 0 && line[at[4]:at[5]] == "m" {
			s.set(strings.FieldsFunc(line[at[2]:at[3]], func(r rune) bool { return r == ';' || r == ':' }))
		}
		line = line[at[1]:]
	}
	return out
}

// set does what "select graphic rendition" (ECMA-48, 8.3.117) asks for with these numbers.
func (s *span) set(numbers []string) {
	if len(numbers) == 0 {
		numbers = []string{"0"}
	}
	for i := 0; i < len(numbers); i++ {
		n, _ := strconv.Atoi(numbers[i]) // the pattern lets digits through alone
		switch {
		case n == 0:
			s.color, s.bold = foreground, false
		case n == 1:
			s.bold = true
		case n == 22:
			s.bold = false
		case n == 39:
			s.color = foreground
		case 30 <= n && n <= 37:
			s.color = palette[n-30]
		case 90 <= n && n <= 97:
			s.color = palette[n-90+8]
		case (n == 38 || n == 48) && i+2 < len(numbers) && numbers[i+1] == "5":
			if c, _ := strconv.Atoi(numbers[i+2]); n == 38 && c < len(palette) {
				s.color = palette[c]
			}
			i += 2
		case (n == 38 || n == 48) && i+4 < len(numbers) && numbers[i+1] == "2":
			if n == 38 {
				s.color = fmt.Sprintf("rgb(%s,%s,%s)", numbers[i+2], numbers[i+3], numbers[i+4])
			}
			i += 4
		}
	}
}

func draw(screen, title string, columns int) []byte {
	var lines []string
	for in := bufio.NewScanner(strings.NewReader(strings.TrimRight(screen, "\n"))); in.Scan(); {
		lines = append(lines, in.Text())
	}
	width := float64(columns)*glyphWidth + 2*margin
	height := titleHeight + len(lines)*lineHeight + margin
	var b bytes.Buffer
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %.0f %d" width="%.0f" height="%d" role="img" aria-label="%s">
<rect x="0.5" y="0.5" width="%.0f" height="%d" rx="8" fill="%s" stroke="%s"/>
<g fill="%s"><circle cx="20" cy="17" r="5"/><circle cx="38" cy="17" r="5"/><circle cx="56" cy="17" r="5"/></g>
<g font-family="ui-monospace,SFMono-Regular,Menlo,Consolas,'DejaVu Sans Mono','Liberation Mono',monospace" font-size="%d">
<text x="%.0f" y="22" fill="%s" text-anchor="middle">%s</text>
`, width, height, width, height, html.EscapeString(title), width-1, height-1, ground, frame, frame, fontSize,
		width/2, titleColor, html.EscapeString(title))
	style := span{color: foreground}
	for row, line := range lines {
		column := 0
		for _, s := range style.spans(line) {
			n := utf8.RuneCountInString(s.text)
			if strings.TrimSpace(s.text) != "" {
				b.WriteString(text(s, column, row, n))
			}
			column += n
		}
	}
	b.WriteString("</g>\n</svg>\n")
	return b.Bytes()
}

// text draws one span at its place. Its length is told, so that columns stay in line whatever the font is.
func text(s span, column, row, n int) string {
	weight := ""
	if s.bold {
		weight = ` font-weight="bold"`
	}
	return fmt.Sprintf(`<text x="%.1f" y="%d" fill="%s"%s textLength="%.1f" xml:space="preserve">%s</text>`+"\n",
		margin+float64(column)*glyphWidth, titleHeight+row*lineHeight+fontSize, s.color, weight,
		float64(n)*glyphWidth, html.EscapeString(s.text))
}
