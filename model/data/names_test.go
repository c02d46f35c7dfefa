package data

import (
	"strings"
	"testing"
)

func TestNames(t *testing.T) {
	zh, en, other := ptr("zh"), ptr("en"), ptr("ZH")
	for _, c := range []struct {
		names, authors []string
		tag            *string
		text, want     string
	}{
		{[]string{"Ada"}, nil, nil, "I am {{NAME}}", "I am Ada"},
		{[]string{"Ada"}, nil, zh, "我是{{NAME}} {{AUTHOR}}", "我是Ada {{AUTHOR}}"},
		{[]string{"小黄", "Xiao Huang"}, []string{"魔搭", "ModelScope"}, zh, "I am {{NAME}} by {{AUTHOR}}", "I am 小黄 by 魔搭"},
		{[]string{"小黄", "Xiao Huang"}, []string{"魔搭", "ModelScope"}, en, "我是{{NAME}},来自{{AUTHOR}}", "我是Xiao Huang,来自ModelScope"},
		{[]string{"小黄", "Xiao Huang"}, nil, other, "我是{{NAME}}", "我是Xiao Huang"},
		{[]string{"小黄", "Xiao Huang"}, nil, nil, "我是{{NAME}}", "我是小黄"}, // no tag: by the text
		{[]string{"小黄", "Xiao Huang"}, nil, nil, "{{NAME}}", "Xiao Huang"},
		{[]string{"{{AUTHOR}}"}, []string{"x"}, nil, "{{NAME}}", "{{AUTHOR}}"}, // what is put in is not looked at again
		{nil, nil, nil, "{{NAME}}", "{{NAME}}"},
		{[]string{"Ada"}, nil, nil, "nothing", "nothing"},
	} {
		names, err := NewNames(c.names, c.authors)
		if err != nil {
			t.Fatal(err)
		}
		conversation := Conversation{Messages: []Message{{Role: User, Content: c.text}, {Role: Assistant, Content: "x"}}}
		marked := names.fill(&conversation, c.tag)
		if got := conversation.Messages[0].Content; got != c.want || marked != strings.Contains(c.text, "{{") {
			t.Errorf("%q %q: %q became %q (%v), want %q", c.names, c.authors, c.text, got, marked, c.want)
		}
	}
	if _, err := NewNames([]string{"a", "b", "c"}, nil); err == nil || !strings.Contains(err.Error(), "--model_name") {
		t.Errorf("three names: %v", err)
	}
}
