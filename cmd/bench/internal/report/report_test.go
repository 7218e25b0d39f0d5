package report

import (
	"bytes"
	"encoding/json"
	"math"
	"strings"
	"testing"
)

func TestSpreadOf(t *testing.T) {
	tests := []struct {
		name string
		in   []float64
		want Spread
	}{
		{"one figure is all three", []float64{2}, Spread{2, 2, 2}},
		{"the middle of an odd number", []float64{3, 1, 2}, Spread{1, 2, 3}},
		{"between the two middle ones", []float64{4, 1, 2, 3}, Spread{1, 2.5, 4}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := SpreadOf(tt.in); got != tt.want {
				t.Errorf("SpreadOf(%v) = %v, want %v", tt.in, got, tt.want)
			}
		})
	}
	if got := SpreadOf(nil); !math.IsNaN(got.Median) {
		t.Errorf("SpreadOf(nil) = %v", got)
	}
}

func sample() *Report {
	return &Report{Samples: []Sample{
		{Mode: "a", Peer: "us", Round: 0, Count: 100, Seconds: 1, CPU: 1, PSS: 10 << 20},
		{Mode: "a", Peer: "them", Round: 0, Count: 100, Seconds: 4, CPU: 3, PSS: 20 << 20},
		{Mode: "a", Peer: "us", Round: 1, Count: 100, Seconds: 1, CPU: 1, PSS: 10 << 20},
		{Mode: "a", Peer: "them", Round: 1, Count: 100, Seconds: 6, CPU: 5, PSS: 40 << 20},
		{Mode: "a", Peer: "them", Round: 2, Count: 100, Seconds: 1, CPU: 1, PSS: 1}, // has no pair
		{Mode: "e", Peer: "us", Round: 0, Count: 10, Seconds: 1, Each: 2048},
		{Mode: "e", Peer: "them", Round: 0, Count: 5, Seconds: 1, Each: 20480},
		{Mode: "z", Peer: "us", Round: 0, Count: 5, Seconds: 0},
	}}
}

func TestRatiosPairTheRounds(t *testing.T) {
	r := sample()
	r.Summarize([]Mode{{"a", "accept", "messages"}, {"e", "idle", "sessions"}, {"x", "not measured", "messages"}, {"z", "alone", "messages"}}, "us", "them")
	if len(r.Modes) != 3 {
		t.Fatalf("modes %+v", r.Modes)
	}
	a := r.Modes[0]
	if want := (Spread{4, 5, 6}); a.Ratios.Rate != want {
		t.Errorf("rate ratio %v, want %v", a.Ratios.Rate, want)
	}
	if want := (Spread{3, 4, 5}); a.Ratios.CPU != want {
		t.Errorf("CPU ratio %v, want %v", a.Ratios.CPU, want)
	}
	if want := (Spread{2, 3, 4}); a.Ratios.Memory != want {
		t.Errorf("memory ratio %v, want %v", a.Ratios.Memory, want)
	}
	if want := (Spread{10000, 10000, 10000}); a.Sides["us"].Cost != want {
		t.Errorf("cost %v, want %v", a.Sides["us"].Cost, want)
	}
	if e := r.Modes[1]; e.Ratios.Each == nil || e.Ratios.Each.Median != 10 {
		t.Errorf("each %+v", e.Ratios)
	}
	if r.Modes[2].Ratios != nil {
		t.Error("a ratio with nobody")
	}
}

func TestBothForms(t *testing.T) {
	r := sample()
	r.Machine = "a machine"
	r.Limits = []Limit{{"files", "a", []float64{400, 150, 200}}, {"copies", "", []float64{7}}}
	r.Summarize([]Mode{{"a", "accept", "messages"}, {"e", "idle", "sessions"}, {"z", "alone", "messages"}}, "us", "them")
	var table, machine bytes.Buffer
	if err := r.Table(&table, "us", "them"); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"a machine", "x5.00 (4.00 - 6.00)", "2.0", "1/10.0",
		"files: 200 (150 - 400) /s; us reaches 50 % of it in mode a\n", "copies: 7 /s\n"} {
		if !strings.Contains(table.String(), want) {
			t.Errorf("no %q in\n%s", want, table.String())
		}
	}
	if err := r.JSON(&machine); err != nil {
		t.Fatal(err)
	}
	var back Report
	if err := json.Unmarshal(machine.Bytes(), &back); err != nil || len(back.Samples) != len(r.Samples) || back.Modes[0].Ratios.Rate != r.Modes[0].Ratios.Rate {
		t.Errorf("JSON came back as %+v, %v", back, err)
	}
}
