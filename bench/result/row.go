package result

import (
	"maps"
	"slices"
	"strconv"
	"strings"
)

// paramsText writes parameters by name: "cache=cold variant=auto".
func paramsText(p map[string]string) string {
	var words []string
	for _, name := range slices.Sorted(maps.Keys(p)) {
		words = append(words, name+"="+p[name])
	}
	return strings.Join(words, " ")
}

// Device names what computed: the card, or the processor.
func (e Environment) Device() string {
	if e.Card != nil {
		return e.Card.Name
	}
	return e.Host.CPU
}

// Slug is the device's name as a folder: lower case letters, digits and dashes.
func (e Environment) Slug() string {
	name := e.Device()
	if e.Card == nil && e.Host.Threads > 0 {
		name += " " + strconv.Itoa(e.Host.Threads) + " threads"
	}
	return slug(name)
}

func slug(name string) string {
	var b strings.Builder
	for _, r := range strings.ToLower(name) {
		switch {
		case r >= 'a' && r <= 'z', r >= '0' && r <= '9':
			b.WriteRune(r)
		case b.Len() > 0 && !strings.HasSuffix(b.String(), "-"):
			b.WriteByte('-')
		}
	}
	return strings.Trim(b.String(), "-")
}
