package data

import (
	"path"
	"path/filepath"
	"slices"
)

// SelfCognition names the dataset that is part of the program: eight questions about who
// the model is, and the answers of a model that has been told.
const SelfCognition = "builtin:self-cognition"

// wording is what a subset adds to the rows of a dataset.
type wording struct{ QuerySuffix, ResponsePrefix string }

// selfCognitionSubsets are those of ms-swift's dataset of that name beside the default one, whose
// rows they are: for models that think, and are to learn their name without it.
var selfCognitionSubsets = map[string]wording{
	"qwen3":       {" /no_think", emptyThink},
	"empty_think": {"", emptyThink},
}

const emptyThink = "<think>\n\n</think>\n\n"

// wordings returns the subsets of a dataset as its files know them, each with what it adds.
func (s Spec) wordings() (subsets []string, add []wording) {
	if name := path.Base(filepath.ToSlash(s.Name)); name != "self-cognition" && s.Name != SelfCognition {
		return s.Subsets, make([]wording, len(s.Subsets))
	}
	names := s.Subsets
	if slices.Equal(names, []string{"all"}) {
		names = []string{"default", "qwen3", "empty_think"}
	}
	for _, name := range names {
		w, ok := selfCognitionSubsets[name]
		if ok {
			name = "default"
		}
		subsets, add = append(subsets, name), append(add, w)
	}
	return subsets, add
}

// apply rewords the last question and the last answer.
func (w wording) apply(c *Conversation) {
	for i := len(c.Messages) - 1; i >= 0 && w != (wording{}); i-- {
		switch m := &c.Messages[i]; {
		case m.Role == Assistant && w.ResponsePrefix != "":
			m.Content, w.ResponsePrefix = w.ResponsePrefix+m.Content, ""
		case m.Role == User && w.QuerySuffix != "":
			m.Content, w.QuerySuffix = m.Content+w.QuerySuffix, ""
		}
	}
}
