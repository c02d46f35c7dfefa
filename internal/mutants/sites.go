package main

import (
	"cmp"
	"go/ast"
	"go/build"
	"go/importer"
	"go/parser"
	"go/token"
	"go/types"
	"path/filepath"
	"regexp"
	"slices"
)

// site is one operator to turn.
type site struct {
	file     string
	line     int
	offset   int    // of the operator in the file
	from, to string // what is turned into what
	function string
	roots    []string // the functions under test from which it is reached
}

// turns are what is looked for in a function, the first that occurs: operators on floating-point
// numbers (an index that goes wrong is caught by the language, not by a test), and for functions that
// leave their arithmetic to others a constant they pass on: whether a product adds to what is there.
var turns = []struct{ from, to string }{
	{"+=", "-="}, {"-=", "+="}, {"-", "+"}, {"+", "-"}, {"*=", "/="}, {"*", "/"},
	{"true", "false"}, {"false", "true"},
}

// function is a declaration of the package: the operator to turn in it, and whom it names.
type function struct {
	name  string
	first *site
	uses  []types.Object
}

// findSites lists the operator to turn in every exported function that matches roots and in every
// function of the package those reach, in order of file and line. bare are roots that reach none.
func findSites(dir string, roots *regexp.Regexp) (found []site, bare []string, err error) {
	declared, order, err := load(dir)
	if err != nil {
		return nil, nil, err
	}
	from := map[*site][]string{}
	for _, object := range order {
		name := object.Name()
		if !object.Exported() || !roots.MatchString(name) {
			continue
		}
		sites := reach(declared, object)
		if len(sites) == 0 {
			bare = append(bare, name)
		}
		for _, s := range sites {
			from[s] = append(from[s], name)
		}
	}
	for s, names := range from {
		s.roots = names
		found = append(found, *s)
	}
	slices.SortFunc(found, func(a, b site) int {
		return cmp.Or(cmp.Compare(a.file, b.file), cmp.Compare(a.offset, b.offset))
	})
	return found, bare, nil
}

// load reads and type-checks the package of dir as it is built here.
func load(dir string) (map[types.Object]*function, []types.Object, error) {
	pkg, err := build.ImportDir(dir, 0)
	if err != nil {
		return nil, nil, err
	}
	set := token.NewFileSet()
	var files []*ast.File
	for _, name := range pkg.GoFiles {
		f, err := parser.ParseFile(set, filepath.Join(dir, name), nil, 0)
		if err != nil {
			return nil, nil, err
		}
		files = append(files, f)
	}
	info := &types.Info{Types: map[ast.Expr]types.TypeAndValue{}, Defs: map[*ast.Ident]types.Object{}, Uses: map[*ast.Ident]types.Object{}}
	config := types.Config{Importer: importer.ForCompiler(set, "source", nil)}
	if _, err := config.Check(pkg.Name, set, files, info); err != nil {
		return nil, nil, err
	}
	declared := map[types.Object]*function{}
	var order []types.Object
	for _, file := range files {
		for _, d := range file.Decls {
			if decl, ok := d.(*ast.FuncDecl); ok && decl.Body != nil {
				object := info.Defs[decl.Name]
				declared[object] = newFunction(set, info, decl)
				order = append(order, object)
			}
		}
	}
	return declared, order, nil
}

// reach collects the sites of a function and of all it names, directly or not.
func reach(declared map[types.Object]*function, root types.Object) []*site {
	var sites []*site
	seen, queue := map[types.Object]bool{root: true}, []types.Object{root}
	for len(queue) > 0 {
		f := declared[queue[0]]
		queue = queue[1:]
		if f.first != nil {
			sites = append(sites, f.first)
		}
		for _, o := range f.uses {
			if declared[o] != nil && !seen[o] {
				seen[o] = true
				queue = append(queue, o)
			}
		}
	}
	return sites
}

func newFunction(set *token.FileSet, info *types.Info, decl *ast.FuncDecl) *function {
	f := &function{name: decl.Name.Name}
	first := map[string]token.Pos{}
	note := func(text string, at token.Pos) {
		if _, known := first[text]; !known {
			first[text] = at
		}
	}
	ast.Inspect(decl.Body, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.AssignStmt:
			if isFloat(info.Types[n.Lhs[0]].Type) {
				note(n.Tok.String(), n.TokPos)
			}
		case *ast.BinaryExpr:
			if v := info.Types[n]; v.Value == nil && isFloat(v.Type) {
				note(n.Op.String(), n.OpPos)
			}
		case *ast.CallExpr:
			for _, arg := range n.Args {
				if x, ok := arg.(*ast.Ident); ok && (info.Uses[x] == types.Universe.Lookup("true") || info.Uses[x] == types.Universe.Lookup("false")) {
					note(x.Name, x.Pos())
				}
			}
		case *ast.Ident:
			if o, ok := info.Uses[n].(*types.Func); ok {
				f.uses = append(f.uses, o.Origin())
			}
		}
		return true
	})
	for _, t := range turns {
		if at, ok := first[t.from]; ok {
			p := set.Position(at)
			f.first = &site{file: p.Filename, line: p.Line, offset: p.Offset, from: t.from, to: t.to, function: f.name}
			break
		}
	}
	return f
}

// isFloat takes floating-point types, and type parameters, which here stand for them.
func isFloat(t types.Type) bool {
	if t == nil {
		return false
	}
	if _, ok := types.Unalias(t).(*types.TypeParam); ok {
		return true
	}
	basic, ok := t.Underlying().(*types.Basic)
	return ok && basic.Info()&types.IsFloat != 0
}
