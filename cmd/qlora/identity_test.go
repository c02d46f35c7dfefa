package main

import (
	"strings"
	"testing"

	"qlora/model/data"
)

func TestIdentity(t *testing.T) {
	for _, c := range []struct {
		names, authors []string
		text, want     string
	}{
		{[]string{"Ada"}, nil, "I am {{NAME}}", "I am Ada"},
		{[]string{"Ada"}, nil, "我是{{NAME}}", "我是Ada"},
		{[]string{"小黄", "Xiao Huang"}, []string{"魔搭", "ModelScope"}, "我是{{NAME}},来自{{AUTHOR}}", "我是小黄,来自魔搭"},
		{[]string{"小黄", "Xiao Huang"}, []string{"魔搭", "ModelScope"}, "{{NAME}} by {{AUTHOR}}", "Xiao Huang by ModelScope"},
		{[]string{"{{AUTHOR}}"}, []string{"x"}, "{{NAME}}", "{{AUTHOR}}"}, // what is put in is not looked at again
		{nil, nil, "{{NAME}}", "{{NAME}}"},
	} {
		id, err := newIdentity(c.names, c.authors)
		if err != nil {
			t.Fatal(err)
		}
		conversation := data.Conversation{Messages: []data.Message{{Role: data.User, Content: "?"}, {Role: data.Assistant, Content: c.text}}}
		if edit := id.edit(); edit != nil {
			edit(&conversation)
		}
		if got := conversation.Messages[1].Content; got != c.want {
			t.Errorf("%q %q: %q became %q, want %q", c.names, c.authors, c.text, got, c.want)
		}
	}
	if _, err := newIdentity([]string{"a", "b", "c"}, nil); err == nil || !strings.Contains(err.Error(), "--model_name") {
		t.Errorf("three names: %v", err)
	}
}
