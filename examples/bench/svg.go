package main

import (
	"fmt"
	"slices"
	"strings"

	"github.com/oncemill/oncemill/examples/internal/chart"
)

// Of the chart, in pixels.
const (
	chartWidth = 860
	labelWidth = 170
	valueWidth = 90
	barHeight  = 20
	rowHeight  = 27
	headHeight = 44 // of a group
	margin     = 20
)

// draw draws a bar for each contender, in groups with a scale of their own: what Postgres
// does without a broker is so much more that the others could not be told apart.
func draw(on setup, results []result) string {
	var body strings.Builder
	y := margin
	chart.Text(&body, margin, y+16, `font-size="18" font-weight="bold"`, "Oncemill beside what people run without it")
	chart.Text(&body, margin, y+36, `fill="#555"`, fmt.Sprintf("%s, %s, a write to disk %s%s; medians", on.machine, on.postgres, on.flush, on.latency))
	y += 48
	for _, group := range []string{handling, bare, relaying, delays} {
		members := slices.DeleteFunc(slices.Clone(results), func(r result) bool { return r.group != group })
		if len(members) > 0 {
			y = drawGroup(&body, y, group, members)
		}
	}
	return chart.Document(chartWidth, y+margin, body.String())
}

func drawGroup(body *strings.Builder, y int, group string, members []result) (below int) {
	chart.Text(body, margin, y+30, `font-weight="bold"`, group)
	y += headHeight
	most := 0.0
	for _, r := range members {
		most = max(most, r.value())
	}
	for _, r := range members {
		drawBar(body, y, r, most)
		y += rowHeight
	}
	return y
}

func drawBar(body *strings.Builder, y int, r result, most float64) {
	const widest = chartWidth - 2*margin - labelWidth - valueWidth
	left, width := margin+labelWidth, 1.0
	if most > 0 {
		width = max(width, widest*r.value()/most)
	}
	colour := "#9aa5b1"
	if r.ours() {
		colour = "#2f6fde"
	}
	chart.Text(body, left-8, y+15, `text-anchor="end"`, r.name)
	fmt.Fprintf(body, "<rect x=\"%d\" y=\"%d\" width=\"%.1f\" height=\"%d\" fill=\"%s\"><title>%s</title></rect>\n", left, y, width, barHeight, colour, chart.Escaped(r.about))
	chart.Text(body, left+int(width)+8, y+15, "", r.format(r.value()))
}
