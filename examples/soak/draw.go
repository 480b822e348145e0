package main

import (
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/oncemill/oncemill/examples/internal/chart"
	"github.com/oncemill/oncemill/examples/internal/stats"
)

// Of the chart, in pixels.
const (
	chartWidth  = 860
	margin      = 20
	titleHeight = 48
	axisWidth   = 50
	panelWidth  = (chartWidth - 3*margin) / 2
	panelHeight = 190
	headHeight  = 36 // of a panel: its title, and what its lines are
	footHeight  = 26

	// mostPoints of a line are drawn, each the median of as many samples as it takes.
	mostPoints = 180
)

var colours = []string{"#2f6fde", "#d9822b", "#1f9d6b", "#b23ad0", "#d64545"}

// A panel is a small chart of some columns over time.
type panel struct {
	title string
	names []string
}

func panels() (all []panel) {
	all = []panel{
		{"effects a second", []string{"rate"}},
		{"milliseconds from the producer to downstream", []string{"p50_ms", "p99_ms"}},
		{"drift: messages under way", []string{"drift", "undelivered"}},
		{"tables with their indexes, MB", nil},
		{"resident memory by role, MB", nil},
		{"heap by role, after garbage collection, MB", nil},
		{"goroutines by role", nil},
		{"Postgres: connections, and MB of its own", []string{"connections", "postgres_mb"}},
	}
	for _, table := range tables {
		all[3].names = append(all[3].names, table+"_mb")
	}
	for _, p := range places {
		if p.ours {
			all[4].names = append(all[4].names, p.role+"_rss_mb")
			all[5].names = append(all[5].names, p.role+"_heap_mb")
			all[6].names = append(all[6].names, p.role+"_goroutines")
		}
	}
	return all
}

// draw draws all panels, two in a row, over the same time.
func draw(about string, s *samples) string {
	var body strings.Builder
	chart.Text(&body, margin, margin+16, `font-size="18" font-weight="bold"`, "Oncemill under a steady load")
	chart.Text(&body, margin, margin+36, `fill="#555"`, about)
	below := margin + titleHeight
	for i, p := range panels() {
		x, y := margin+i%2*(panelWidth+margin), margin+titleHeight+i/2*panelHeight
		p.draw(&body, x, y, s)
		below = y + panelHeight
	}
	return chart.Document(chartWidth, below+margin, body.String())
}

func (p panel) draw(body *strings.Builder, x, y int, s *samples) {
	chart.Text(body, x, y+14, `font-weight="bold"`, p.title)
	most := 0.0
	var lines [][]float64
	for _, name := range p.names {
		lines = append(lines, thinned(s.values(name)))
		most = max(most, slices.Max(append(lines[len(lines)-1], 0)))
	}
	most = rounded(most)
	left, right, top, bottom := x+axisWidth, x+panelWidth, y+headHeight, y+panelHeight-footHeight
	chart.Text(body, left-6, top+5, `text-anchor="end" fill="#555" font-size="11"`, fmt.Sprintf("%g", most))
	chart.Text(body, left-6, bottom+4, `text-anchor="end" fill="#555" font-size="11"`, "0")
	fmt.Fprintf(body, "<path d=\"M%d %dV%dH%d\" fill=\"none\" stroke=\"#999\"/>\n", left, top, bottom, right)
	if n := len(s.all); n > 0 {
		chart.Text(body, right, bottom+14, `text-anchor="end" fill="#555" font-size="11"`, fmt.Sprintf("%.4g minutes", s.all[n-1].of("seconds")/60))
	}
	at := left
	for i, name := range p.names {
		colour := colours[i%len(colours)]
		short := strings.NewReplacer("_rss_mb", "", "_heap_mb", "", "_goroutines", "", "_mb", "", "_ms", "").Replace(name)
		chart.Text(body, at, y+29, `font-size="11" fill="`+colour+`"`, short)
		at += 7*len(short) + 10
		drawLine(body, lines[i], colour, most, left, right, top, bottom)
	}
}

func drawLine(body *strings.Builder, values []float64, colour string, most float64, left, right, top, bottom int) {
	var points []string
	for i, value := range values {
		x := float64(left) + float64(right-left)*(float64(i)+0.5)/float64(len(values))
		y := float64(bottom) - float64(bottom-top)*value/most
		points = append(points, fmt.Sprintf("%.0f,%.1f", x, y))
	}
	fmt.Fprintf(body, "<polyline points=\"%s\" fill=\"none\" stroke=\"%s\" stroke-width=\"1.3\"/>\n", strings.Join(points, " "), colour)
}

// thinned are as many values as are drawn.
func thinned(values []float64) (few []float64) {
	size := (len(values) + mostPoints - 1) / mostPoints
	for part := range slices.Chunk(values, max(size, 1)) {
		few = append(few, stats.Median(part))
	}
	return few
}

// rounded is the next of 1, 2, 5, 10 ... that is not below a value.
func rounded(value float64) float64 {
	if value <= 0 {
		return 1
	}
	unit := math.Pow(10, math.Floor(math.Log10(value)))
	for _, times := range []float64{1, 2, 5} {
		if value <= times*unit {
			return times * unit
		}
	}
	return 10 * unit
}
