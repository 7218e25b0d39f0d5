// Package report turns the measurements of a run into medians, ratios and their spread, as a table and as JSON.
package report

import (
	"encoding/json"
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// Sample is one measurement: one server doing the work of one mode once.
type Sample struct {
	Mode  string `json:"mode"`
	Peer  string `json:"peer"`
	Round int    `json:"round"`

	Count   int     `json:"count"` // messages, recipients or sessions
	Seconds float64 `json:"seconds"`

	// CPU seconds of the server, of the load generator and of the sink.
	CPU     float64 `json:"cpu"`
	LoadCPU float64 `json:"load_cpu"`
	SinkCPU float64 `json:"sink_cpu"`

	// Others is the share of all CPUs that the rest of the machine took meanwhile, from 0 to 1.
	Others float64 `json:"others"`

	Processes int   `json:"processes"`
	RSS       int64 `json:"rss"`
	PSS       int64 `json:"pss"`

	// Each is the memory one held session costs, in bytes of PSS; 0 in modes that hold none.
	Each float64 `json:"each,omitempty"`

	// Forks is how many processes the server started for each thousand, if that is known.
	Forks *float64 `json:"forks_per_1000,omitempty"`

	// Sessions is how many SMTP sessions the server opened to the sink.
	Sessions int `json:"sessions,omitempty"`
}

// Rate is how much was done in a second.
func (s Sample) Rate() float64 { return ratio(float64(s.Count), s.Seconds) }

// Cost is the server's CPU time for one, in microseconds.
func (s Sample) Cost() float64 { return 1e6 * ratio(s.CPU, float64(s.Count)) }

// Started tells of the processes that were started, if that is known.
func (s Sample) Started() string {
	if s.Forks == nil {
		return ""
	}
	return fmt.Sprintf(", %.1f more for each 1000", *s.Forks)
}

// Mode is a kind of work.
type Mode struct {
	Key   string `json:"key"`
	Title string `json:"title"`
	Unit  string `json:"unit"`
}

// Spread is the least, the middle and the greatest of several figures.
type Spread struct {
	Min    float64 `json:"min"`
	Median float64 `json:"median"`
	Max    float64 `json:"max"`
}

// SpreadOf sorts figures. None give NaN, which JSON leaves out with the figure.
func SpreadOf(v []float64) Spread {
	if len(v) == 0 {
		return Spread{math.NaN(), math.NaN(), math.NaN()}
	}
	v = slices.Sorted(slices.Values(v))
	mid := v[len(v)/2]
	if len(v)%2 == 0 {
		mid = (v[len(v)/2-1] + mid) / 2
	}
	return Spread{v[0], mid, v[len(v)-1]}
}

// Side is one server's figures in one mode, over all rounds.
type Side struct {
	Rate     Spread  `json:"rate"`
	Cost     Spread  `json:"cpu_us"`
	LoadCost Spread  `json:"load_cpu_us"`
	SinkCost Spread  `json:"sink_cpu_us"`
	PSS      Spread  `json:"pss"`
	RSS      Spread  `json:"rss"`
	Others   Spread  `json:"others"`
	Each     *Spread `json:"each,omitempty"`
	Forks    *Spread `json:"forks_per_1000,omitempty"`
}

// Ratios compare the first server with the second, round by round: how many times as fast, and how many times less CPU
// and memory.
type Ratios struct {
	Rate   Spread  `json:"rate"`
	CPU    Spread  `json:"cpu"`
	Memory Spread  `json:"memory"`
	Each   *Spread `json:"each,omitempty"`
}

// Summary is one mode.
type Summary struct {
	Mode
	Sides  map[string]Side `json:"sides"`
	Ratios *Ratios         `json:"ratios,omitempty"` // when both servers were measured
}

// Limit is what the machine itself does in a second, measured without any server.
type Limit struct {
	Title string    `json:"title"`
	Mode  string    `json:"mode,omitempty"` // the mode that cannot be faster
	Rates []float64 `json:"rates"`
}

// Report is a whole run.
type Report struct {
	Begun    time.Time         `json:"begun"`
	Took     float64           `json:"seconds"`
	Machine  string            `json:"machine"`
	Versions map[string]string `json:"versions"`
	Settings map[string]string `json:"settings"`
	Notes    []string          `json:"notes,omitempty"`
	Modes    []Summary         `json:"modes"`
	Limits   []Limit           `json:"limits,omitempty"`
	Samples  []Sample          `json:"samples"`
}

// Summarize fills Modes from Samples; ours and theirs name the two servers of the ratios.
func (r *Report) Summarize(modes []Mode, ours, theirs string) {
	r.Modes = nil
	for _, m := range modes {
		sum := Summary{Mode: m, Sides: map[string]Side{}}
		for _, name := range []string{ours, theirs} {
			if mine := r.of(m.Key, name); len(mine) > 0 {
				sum.Sides[name] = side(mine)
			}
		}
		if len(sum.Sides) == 0 {
			continue
		}
		sum.Ratios = compare(r.of(m.Key, ours), r.of(m.Key, theirs))
		r.Modes = append(r.Modes, sum)
	}
}

func (r *Report) of(mode, peer string) (out []Sample) {
	for _, s := range r.Samples {
		if s.Mode == mode && s.Peer == peer {
			out = append(out, s)
		}
	}
	return out
}

func side(s []Sample) Side {
	side := Side{
		Rate:     over(s, Sample.Rate),
		Cost:     over(s, Sample.Cost),
		LoadCost: over(s, func(s Sample) float64 { return 1e6 * ratio(s.LoadCPU, float64(s.Count)) }),
		SinkCost: over(s, func(s Sample) float64 { return 1e6 * ratio(s.SinkCPU, float64(s.Count)) }),
		PSS:      over(s, func(s Sample) float64 { return float64(s.PSS) }),
		RSS:      over(s, func(s Sample) float64 { return float64(s.RSS) }),
		Others:   over(s, func(s Sample) float64 { return 100 * s.Others }),
	}
	if s[0].Each > 0 {
		each := over(s, func(s Sample) float64 { return s.Each })
		side.Each = &each
	}
	if !slices.ContainsFunc(s, func(s Sample) bool { return s.Forks == nil }) {
		forks := over(s, func(s Sample) float64 { return *s.Forks })
		side.Forks = &forks
	}
	return side
}

func over(s []Sample, figure func(Sample) float64) Spread {
	var v []float64
	for _, s := range s {
		v = append(v, figure(s))
	}
	return SpreadOf(v)
}

// compare pairs the samples of each round; nil when there is no pair.
func compare(ours, theirs []Sample) *Ratios {
	var rate, cpu, memory, each []float64
	for _, a := range ours {
		for _, b := range theirs {
			if a.Round != b.Round {
				continue
			}
			rate = append(rate, ratio(a.Rate(), b.Rate()))
			cpu = append(cpu, ratio(b.Cost(), a.Cost()))
			memory = append(memory, ratio(float64(b.PSS), float64(a.PSS)))
			if a.Each > 0 {
				each = append(each, ratio(b.Each, a.Each))
			}
		}
	}
	if len(rate) == 0 {
		return nil
	}
	r := &Ratios{Rate: SpreadOf(rate), CPU: SpreadOf(cpu), Memory: SpreadOf(memory)}
	if len(each) > 0 {
		s := SpreadOf(each)
		r.Each = &s
	}
	return r
}

// ratio is 0 where nothing was measured, so that every figure can be written as JSON.
func ratio(a, b float64) float64 {
	if b <= 0 {
		return 0
	}
	return a / b
}

// JSON writes the report for machines.
func (r *Report) JSON(w io.Writer) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(r)
}

// Table writes the report for people.
func (r *Report) Table(w io.Writer, ours, theirs string) error {
	fmt.Fprintf(w, "%s\n", r.Machine)
	for _, name := range []string{ours, theirs} {
		if v := r.Versions[name]; v != "" {
			fmt.Fprintf(w, "%s: %s\n", name, v)
		}
	}
	for _, n := range r.Notes {
		fmt.Fprintf(w, "note: %s\n", n)
	}
	fmt.Fprint(w, explanation)
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "mode\tserver\trate /s\tCPU us\tload us\tsink us\tmemory MiB\tothers %\tKiB/session\tforks/1000")
	for _, m := range r.Modes {
		for _, name := range []string{ours, theirs} {
			if s, ok := m.Sides[name]; ok {
				s.row(t, m.Key, name)
			}
		}
		if q := m.Ratios; q != nil {
			fmt.Fprintf(t, "%s\tratio\t%s\t%s\t\t\t%s\t\t%s\n", m.Key, q.Rate.text("x%.2f", 1), q.CPU.text("1/%.2f", 1), q.Memory.text("1/%.2f", 1), optional(q.Each, "1/%.1f", 1))
		}
	}
	if err := t.Flush(); err != nil {
		return err
	}
	for _, m := range r.Modes {
		fmt.Fprintf(w, "%s: %s (%s)\n", m.Key, m.Title, m.Unit)
	}
	for _, l := range r.Limits {
		rate := SpreadOf(l.Rates)
		fmt.Fprintf(w, "limit: %s: %s /s%s\n", l.Title, rate.text("%.0f", 1), r.near(l, rate.Median, ours))
	}
	return nil
}

// near says how much of a limit a server reaches.
func (r *Report) near(l Limit, limit float64, name string) string {
	for _, m := range r.Modes {
		if s, ok := m.Sides[name]; ok && m.Key == l.Mode && limit > 0 {
			return fmt.Sprintf("; %s reaches %.0f %% of it in mode %s", name, 100*s.Rate.Median/limit, m.Key)
		}
	}
	return ""
}

const explanation = `
The median of the rounds, with the least and the greatest. CPU is user and system time for one message, recipient or session:
of all the server's processes, of the load generator, of the sink. Memory is the sum of PSS at the end. Others is what the rest
of the machine took of all CPUs meanwhile: figures from a busy machine say little. Forks are the processes that the server started. A ratio compares the two within a round.

`

func (s Side) row(w io.Writer, mode, name string) {
	fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", mode, name, s.Rate.text("%.0f", 1), s.Cost.text("%.0f", 1), one("%.0f", s.LoadCost.Median),
		one("%.0f", s.SinkCost.Median), s.PSS.text("%.0f", 1<<20), s.Others.text("%.0f", 1), optional(s.Each, "%.1f", 1<<10), optional(s.Forks, "%.1f", 1))
}

func (s Spread) text(format string, unit float64) string {
	f := func(v float64) string { return fmt.Sprintf(format, v/unit) }
	plain := func(v float64) string { return strings.TrimPrefix(strings.TrimPrefix(f(v), "x"), "1/") }
	if s.Min == s.Max {
		return f(s.Median)
	}
	return f(s.Median) + " (" + plain(s.Min) + " - " + plain(s.Max) + ")"
}

func optional(s *Spread, format string, unit float64) string {
	if s == nil {
		return ""
	}
	return s.text(format, unit)
}

// one leaves out what was not measured.
func one(format string, v float64) string {
	if v == 0 {
		return "-"
	}
	return fmt.Sprintf(format, v)
}

// Times is how many times as fast a server was in one mode as in another, by the medians, if it was measured in both.
func (r *Report) Times(peer, mode, other string) (x float64, ok bool) {
	a, b := r.of(mode, peer), r.of(other, peer)
	if len(a) == 0 || len(b) == 0 {
		return 0, false
	}
	return ratio(over(a, Sample.Rate).Median, over(b, Sample.Rate).Median), true
}
