package data

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"

	"qlora/internal/yamlguard"
)

// extensions are the types of files that are read.
var extensions = []string{".jsonl", ".json", ".csv", ".parquet", ".txt"}

func extension(file string) string { return strings.ToLower(path.Ext(filepath.ToSlash(file))) }

func readable(file string) bool { return slices.Contains(extensions, extension(file)) }

// notData are files with a type that is read, but about a dataset.
var notData = []string{"config.json", "dataset_info.json", "dataset_infos.json", "dataset_dict.json", "dataset_infos.json_bak"}

// folderFiles returns the files of a folder that hold its training rows, by the rules of the
// Python library datasets, and those of the same types that do not. The rules: the README's
// `configs` say what belongs to a subset. Without them, files named for a split (train, test,
// validation and their synonyms) are told apart by it, and all are taken where none is so named.
// Of several types of files the commonest is read.
//
// add are what the subsets add to their rows.
func folderFiles(dir string, subsets []string, add []wording) (files []source, leftOut []string, err error) {
	all, err := dataFiles(dir)
	if err != nil {
		return nil, nil, err
	}
	if len(all) == 0 {
		return nil, nil, fmt.Errorf("%s holds no file of type %s", dir, strings.Join(extensions, ", "))
	}
	configs, err := readConfigs(dir)
	if err != nil {
		return nil, nil, err
	}
	var taken []string
	var words []wording // of each taken
	if len(subsets) == 0 {
		if taken, err = configs.choose(all); err != nil {
			return nil, nil, fmt.Errorf("%s: %w", dir, err)
		}
		words = make([]wording, len(taken))
	}
	for i, subset := range subsets {
		part, err := configs.subset(subset, all)
		if err != nil {
			return nil, nil, fmt.Errorf("%s: %w", dir, err)
		}
		taken, words = append(taken, part...), append(words, slices.Repeat(add[i:i+1], len(part))...)
	}
	kind := commonest(taken)
	full := func(file string) string { return filepath.Join(dir, filepath.FromSlash(file)) }
	for i, file := range taken {
		if extension(file) == kind {
			files = append(files, source{full(file), words[i]})
		}
	}
	for _, file := range all {
		if !slices.ContainsFunc(files, func(s source) bool { return s.file == full(file) }) {
			leftOut = append(leftOut, full(file))
		}
	}
	return files, leftOut, nil
}

// dataFiles lists what may be data below a folder, by path from it with slashes, sorted. Hidden
// names and folders that start with two underscores are passed over.
func dataFiles(dir string) ([]string, error) {
	var files []string
	err := filepath.WalkDir(dir, func(name string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		base := entry.Name()
		if name == dir {
			return nil
		}
		if entry.IsDir() {
			if base[0] == '.' || strings.HasPrefix(base, "__") {
				return fs.SkipDir
			}
			return nil
		}
		if base[0] == '.' || !readable(base) || slices.Contains(notData, base) {
			return nil
		}
		if info, err := os.Stat(name); err != nil || !info.Mode().IsRegular() { // the cache's files are links
			return errors.Join(err, fmt.Errorf("%s is not a file", name))
		}
		rel, err := filepath.Rel(dir, name)
		files = append(files, filepath.ToSlash(rel))
		return err
	})
	slices.Sort(files)
	return files, err
}

// commonest returns the type that most files have, of equals the first of extensions.
func commonest(files []string) string {
	count := map[string]int{}
	for _, file := range files {
		count[extension(file)]++
	}
	return slices.MaxFunc(extensions, func(a, b string) int { return count[a] - count[b] })
}

var (
	shardPattern = regexp.MustCompile(`^data/(\w+)-\d{5}-of-\d{5}.*\.`)
	splitPattern = regexp.MustCompile(`(?:^|[-._ 0-9])(train|training|validation|valid|dev|val|test|testing|eval|evaluation)(?:$|[-._ 0-9])`)
)

// trainSplit returns the files of split train.
func trainSplit(files []string) ([]string, error) {
	for _, splitOf := range []func(file string) string{
		func(file string) string { return submatch(shardPattern, file) },
		func(file string) string {
			for part := range strings.SplitSeq(path.Dir(file), "/") {
				if split := submatch(splitPattern, part); split != "" {
					return split
				}
			}
			return ""
		},
		func(file string) string { return submatch(splitPattern, path.Base(file)) },
	} {
		var train, others []string
		for _, file := range files {
			switch splitOf(file) {
			case "":
			case "train", "training":
				train = append(train, file)
			default:
				others = append(others, file)
			}
		}
		switch {
		case len(train) > 0:
			return train, nil
		case len(others) > 0:
			return nil, fmt.Errorf("no file of split train, only %s: give a file", strings.Join(others, ", "))
		}
	}
	return files, nil
}

func submatch(pattern *regexp.Regexp, text string) string {
	if m := pattern.FindStringSubmatch(text); m != nil {
		return m[1]
	}
	return ""
}

// configs are the subsets that a README's front matter defines.
type configs []config

type config struct {
	Name    string    `yaml:"config_name"`
	Default bool      `yaml:"default"`
	Dir     string    `yaml:"data_dir"`
	Files   dataPaths `yaml:"data_files"`
}

// dataPaths are the patterns of the files of split train.
type dataPaths []string

// UnmarshalYAML reads a pattern, a list of them, or a list of {split, path}.
func (p *dataPaths) UnmarshalYAML(decode func(any) error) error {
	var splits []struct {
		Split string    `yaml:"split"`
		Path  dataPaths `yaml:"path"`
	}
	var list []string
	var one string
	switch {
	case decode(&one) == nil:
		*p = dataPaths{one}
	case decode(&list) == nil:
		*p = list
	case decode(&splits) == nil:
		for _, s := range splits {
			if s.Split == "train" {
				*p = append(*p, s.Path...)
			}
		}
	default:
		return errors.New("data_files is neither a pattern, a list of patterns, nor a list of split and path")
	}
	return nil
}

// maxReadme bounds the README that is read, and maxFront its front matter, which in the parser takes up to 700 times as
// much.
const (
	maxReadme = 8 << 20
	maxFront  = 1 << 20
)

func readConfigs(dir string) (configs, error) {
	name := filepath.Join(dir, "README.md")
	info, err := os.Stat(name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, nil
	case err != nil:
		return nil, err
	case !info.Mode().IsRegular():
		return nil, fmt.Errorf("%s is not a file", name)
	case info.Size() > maxReadme:
		return nil, fmt.Errorf("%s is larger than %d bytes", name, maxReadme)
	}
	text, err := os.ReadFile(name)
	if err != nil {
		return nil, err
	}
	body, ok := strings.CutPrefix(strings.ReplaceAll(string(text), "\r\n", "\n"), "---\n")
	front, _, closed := strings.Cut(body, "\n---")
	if !ok || !closed {
		return nil, nil
	}
	found, err := parseFront([]byte("\n" + front)) // lines are those of the file
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return found, nil
}

// parseFront reads the front matter of a README.
func parseFront(text []byte) (configs, error) {
	if len(text) > maxFront {
		return nil, fmt.Errorf("its front matter is larger than %d bytes", maxFront)
	}
	if err := yamlguard.Check(text); err != nil {
		return nil, err
	}
	file, err := parser.ParseBytes(text, 0)
	if err != nil {
		return nil, err
	}
	var card struct {
		Configs configs `yaml:"configs"`
	}
	for _, doc := range file.Docs {
		if doc.Body == nil {
			continue
		}
		var found aliases
		if ast.Walk(&found, doc.Body); found.n > 0 { // a few lines of them stand for more than memory holds
			return nil, errors.New("aliases are not read: write them out")
		}
		if err := yaml.NodeToValue(doc.Body, &card); err != nil {
			return nil, fmt.Errorf("configs: %w", err)
		}
	}
	return card.Configs, nil
}

// aliases counts them.
type aliases struct{ n int }

func (a *aliases) Visit(node ast.Node) ast.Visitor {
	if node.Type() == ast.AliasType {
		a.n++
	}
	return a
}

// choose returns the files of the default subset.
func (c configs) choose(all []string) ([]string, error) {
	i := slices.IndexFunc(c, func(one config) bool { return one.Default || one.Name == "default" })
	switch {
	case i >= 0:
		return c[i].match(all)
	case len(c) == 1:
		return c[0].match(all)
	case len(c) > 1:
		return nil, fmt.Errorf("several subsets: name some of %s after a colon, as in NAME:%s", strings.Join(c.names(), ", "), c[0].Name)
	}
	return trainSplit(all)
}

// subset returns the files of a subset by name; "all" is every one that the README names.
func (c configs) subset(name string, all []string) ([]string, error) {
	if i := slices.IndexFunc(c, func(one config) bool { return one.Name == name }); i >= 0 {
		return c[i].match(all)
	}
	if name == "default" && len(c) == 0 || name == "all" {
		if len(c) == 0 {
			return trainSplit(all)
		}
		var files []string
		for _, one := range c {
			part, err := one.match(all)
			if err != nil {
				return nil, err
			}
			files = append(files, part...)
		}
		return files, nil
	}
	if len(c) > 0 {
		return nil, fmt.Errorf("no subset %q, only %s", name, strings.Join(c.names(), ", "))
	}
	under := config{Name: name, Dir: name} // a folder by that name
	return under.match(all)
}

func (c configs) names() []string {
	var names []string
	for _, one := range c {
		names = append(names, one.Name)
	}
	return names
}

// match returns a subset's files of split train.
func (c config) match(all []string) ([]string, error) {
	var files []string
	for _, file := range all {
		below, ok := file, true
		if c.Dir != "" && c.Dir != "." {
			below, ok = strings.CutPrefix(file, strings.Trim(c.Dir, "/")+"/")
		}
		if ok && (c.Files == nil || slices.ContainsFunc(c.Files, func(pattern string) bool { return globMatch(pattern, below) })) {
			files = append(files, file)
		}
	}
	if len(files) == 0 {
		return nil, fmt.Errorf("subset %q has no file of a type that is read (%s)", c.Name, strings.Join(extensions, ", "))
	}
	if c.Files == nil {
		return trainSplit(files)
	}
	return files, nil
}

// globMatch reports whether a path matches a pattern in which * is any text without a slash
// and ** any text.
func globMatch(pattern, file string) bool {
	var expr strings.Builder
	for rest := strings.TrimPrefix(pattern, "./"); rest != ""; {
		switch {
		case strings.HasPrefix(rest, "**/"):
			expr.WriteString("(?:.*/)?")
			rest = rest[3:]
		case strings.HasPrefix(rest, "**"):
			expr.WriteString(".*")
			rest = rest[2:]
		case rest[0] == '*':
			expr.WriteString("[^/]*")
			rest = rest[1:]
		case rest[0] == '?':
			expr.WriteString("[^/]")
			rest = rest[1:]
		default:
			end := strings.IndexAny(rest, "*?")
			if end < 0 {
				end = len(rest)
			}
			expr.WriteString(regexp.QuoteMeta(rest[:end]))
			rest = rest[end:]
		}
	}
	ok, err := regexp.MatchString("^(?:"+expr.String()+")$", file)
	return ok && err == nil
}
