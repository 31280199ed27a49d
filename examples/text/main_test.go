package main

import (
	"slices"
	"testing"
)

func TestSlug(t *testing.T) {
	for in, want := range map[string]string{
		"Crème Brûlée!":    "creme-brulee",
		"  two   words ":   "two-words",
		"—":                "",
		"Straße 12":        "straße-12",
		"a/b\\c..d":        "a-b-c-d",
		"UPPER_lower-1.20": "upper-lower-1-20",
	} {
		if got := slug(in); got != want {
			t.Errorf("slug(%q) = %q, want %q", in, got, want)
		}
	}
}

func TestCount(t *testing.T) {
	c := count("the cat and the dog\nand the bird")
	if c.Words != 8 || c.Lines != 2 || c.Minutes != 1 || !slices.Equal(c.Top, []string{"the", "and", "cat", "dog", "bird"}) {
		t.Errorf("count = %+v", c)
	}
	if c := count(""); c.Words != 0 || c.Lines != 0 || c.Minutes != 0 || len(c.Top) != 0 {
		t.Errorf("count of nothing = %+v", c)
	}
}

func TestWrap(t *testing.T) {
	got := wrap("one two three a-word-longer-than-the-line four", 10)
	want := []string{"one two", "three", "a-word-longer-than-the-line", "four"}
	if !slices.Equal(got, want) {
		t.Errorf("wrap = %q, want %q", got, want)
	}
}
