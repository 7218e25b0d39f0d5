package main

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestEveryProgramHasItsPage: a page has the name of its program, and says what it is. What points to another page of ours
// points to one that there is.
func TestEveryProgramHasItsPage(t *testing.T) {
	pages := map[string]string{}
	files, err := filepath.Glob("../../man/*.[1-8]")
	if err != nil || len(files) < 50 {
		t.Fatalf("%d pages: %v", len(files), err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		pages[filepath.Base(file)] = string(text)
	}
	page := func(program string) string {
		for _, section := range []string{"1", "5", "8"} {
			if text, ok := pages[program+"."+section]; ok {
				return text
			}
		}
		return ""
	}
	for _, p := range programs {
		if text := page(p.link); text == "" {
			t.Errorf("%s has no page", p.link)
		} else if !strings.Contains(text, "\n.Sh NAME\n.Nm "+p.link) && !strings.Contains(text, " "+p.link+"\n") {
			t.Errorf("the page of %s has another name", p.link)
		}
	}
	pointer := regexp.MustCompile(`(?m)\bXr ((?:qmail|dot-qmail)[-a-z0-9]*) ([1-8])`)
	for name, text := range pages {
		for _, m := range pointer.FindAllStringSubmatch(text, -1) {
			if _, ok := pages[m[1]+"."+m[2]]; !ok {
				t.Errorf("%s points to %s(%s), which does not exist", name, m[1], m[2])
			}
		}
	}
}
