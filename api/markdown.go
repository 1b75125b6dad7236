package api

import (
	"html/template"
	"regexp"
	"strings"
)

// span is what a description may have within a line, of CommonMark's: code, strong words, links. The text is escaped
// before it is looked for.
var span = regexp.MustCompile("`([^`]+)`" + `|\*\*([^*]+)\*\*|\[([^\]]+)\]\(([^)\s"']+)\)`)

// markdown renders a description: paragraphs, and lists whose every item begins with "- ".
func markdown(text string) template.HTML {
	var out strings.Builder
	for block := range strings.SplitSeq(strings.TrimSpace(text), "\n\n") {
		block = strings.TrimSpace(block)
		if block == "" {
			continue
		}
		if items, ok := strings.CutPrefix(block, "- "); ok {
			out.WriteString("<ul>")
			for item := range strings.SplitSeq(items, "\n- ") {
				out.WriteString("<li>" + inLine(item) + "</li>")
			}
			out.WriteString("</ul>\n")
			continue
		}
		out.WriteString("<p>" + inLine(block) + "</p>\n")
	}
	return template.HTML(out.String()) // made of escaped text
}

// phrase renders a description of one paragraph, without the paragraph.
func phrase(text string) template.HTML { return template.HTML(inLine(strings.TrimSpace(text))) }

func inLine(text string) string {
	text = template.HTMLEscapeString(text)
	return span.ReplaceAllStringFunc(text, func(s string) string {
		m := span.FindStringSubmatch(s)
		switch {
		case m[1] != "":
			return "<code>" + m[1] + "</code>"
		case m[2] != "":
			return "<strong>" + m[2] + "</strong>"
		default:
			return `<a href="` + m[4] + `">` + m[3] + "</a>"
		}
	})
}
