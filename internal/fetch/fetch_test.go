package fetch

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"qlora/internal/fetch/fetchtest"
)

const id = "Some-Org/Some.Model-1"

// content is n bytes that are no repetition of others.
func content(n int, seed byte) []byte {
	b := make([]byte, n)
	x := uint32(seed) + 1
	for i := range b {
		x = x*1664525 + 1013904223
		b[i] = byte(x >> 24)
	}
	return b
}

func files() map[string][]byte {
	return map[string][]byte{
		"config.json": []byte(`{"a": 1}`), "model-1.safetensors": content(3_000_000, 1), "model-2.safetensors": content(1_234_567, 2),
		"sub/folder/tokenizer.json": content(50_000, 3), "empty.txt": {}, "LICENSE": content(99, 4),
	}
}

// client is one of a hub that lies in an empty cache and does not wait.
func client(t *testing.T, h *fetchtest.Hub) *Client {
	t.Helper()
	for _, name := range []string{"HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_TOKEN_PATH", "XDG_CACHE_HOME", "HF_HUB_OFFLINE", "MODELSCOPE_API_TOKEN", "HF_HUB_DISABLE_IMPLICIT_TOKEN"} {
		t.Setenv(name, "")
	}
	t.Setenv("HF_HOME", t.TempDir())
	t.Setenv("MODELSCOPE_CACHE", t.TempDir())
	t.Setenv("HF_ENDPOINT", h.URL+"/")
	t.Setenv("MODELSCOPE_DOMAIN", h.URL)
	c, err := FromEnvironment()
	if err != nil {
		t.Fatal(err)
	}
	c.Wait = func(int) time.Duration { return 0 }
	c.Log = func(format string, args ...any) { t.Logf(format, args...) }
	return c
}

// get fetches all of a hub's repository.
func get(t *testing.T, c *Client, hub Hub) (string, error) {
	t.Helper()
	r, err := c.List(t.Context(), hub, id, false, "")
	if err != nil {
		return "", err
	}
	return c.Get(t.Context(), r, r.Files, nil)
}

// holds compares a folder with files.
func holds(t *testing.T, dir string, want map[string][]byte) {
	t.Helper()
	for path, text := range want {
		got, err := os.ReadFile(filepath.Join(dir, path))
		if err != nil || !bytes.Equal(got, text) {
			t.Errorf("%s: %d bytes, want %d: %v", path, len(got), len(text), err)
		}
	}
}

// none of the files that were not checked has a name.
func noneOf(t *testing.T, contents ...[]byte) {
	t.Helper()
	err := filepath.WalkDir(os.Getenv("HF_HOME"), func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		for _, c := range contents {
			if d.Name() == fetchtest.SHA256(c) || d.Name() == "main" {
				t.Errorf("%s is there", path)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestFetch(t *testing.T) {
	for _, hub := range []Hub{HuggingFace, ModelScope} {
		t.Run(string(hub), func(t *testing.T) {
			h := fetchtest.New(t, id, files())
			c := client(t, h)
			r, err := c.List(t.Context(), hub, id, false, "")
			if err != nil {
				t.Fatal(err)
			}
			var last Progress
			dir, err := c.Get(t.Context(), r, r.Files, func(p Progress) { last = p })
			if err != nil {
				t.Fatal(err)
			}
			holds(t, dir, h.Files)
			if last.There != last.Total || last.Came != last.Total || last.Total != 3_000_000+1_234_567+50_000+8+99 {
				t.Errorf("progress ended at %+v", last)
			}
			n := h.Count()
			if _, err := c.Get(t.Context(), r, r.Files, nil); err != nil || h.Count() != n {
				t.Errorf("a second run asked for %d files, %v", h.Count()-n, err)
			}
			switch hub {
			case HuggingFace:
				repo := filepath.Join(os.Getenv("HF_HOME"), "hub", "models--Some-Org--Some.Model-1")
				if dir != filepath.Join(repo, "snapshots", fetchtest.Commit) {
					t.Errorf("in %s", dir)
				}
				if ref, err := os.ReadFile(filepath.Join(repo, "refs", "main")); string(ref) != fetchtest.Commit {
					t.Errorf("refs/main: %q, %v", ref, err)
				}
				for path, want := range map[string]string{"config.json": "../../blobs/" + fetchtest.Git(h.Files["config.json"]), "sub/folder/tokenizer.json": "../../../../blobs/" + fetchtest.SHA256(h.Files["sub/folder/tokenizer.json"])} {
					if link, err := os.Readlink(filepath.Join(dir, path)); link != want {
						t.Errorf("%s leads to %s, want %s (%v)", path, link, want, err)
					}
				}
			case ModelScope:
				if dir != filepath.Join(os.Getenv("MODELSCOPE_CACHE"), "hub", "models", "Some-Org", "Some___Model-1") {
					t.Errorf("in %s", dir)
				}
				if _, err := os.Stat(filepath.Join(dir, incomplete)); err == nil {
					t.Error("the folder of partial files is left")
				}
			}
		})
	}
}

func TestDataset(t *testing.T) {
	h := fetchtest.New(t, id, files())
	c := client(t, h)
	r, err := c.List(t.Context(), HuggingFace, id, true, "v1.0")
	if err != nil {
		t.Fatal(err)
	}
	dir, err := c.Get(t.Context(), r, r.Files[:1], nil)
	if err != nil || !strings.Contains(dir, "datasets--Some-Org--Some.Model-1") {
		t.Errorf("%s, %v", dir, err)
	}
	if ref, _ := os.ReadFile(filepath.Join(dir, "../../refs/v1.0")); string(ref) != fetchtest.Commit {
		t.Errorf("refs/v1.0: %q", ref)
	}
	if _, err := c.List(t.Context(), ModelScope, id, true, ""); err == nil {
		t.Error("a dataset of ModelScope was listed")
	}
}

// misbehave has a hub answer for its first file in a way of its own.
const bad = "model-1.safetensors"

func TestConnectionsThatEnd(t *testing.T) {
	for name, c := range map[string]struct {
		answer   func(h *fetchtest.Hub) func(w http.ResponseWriter, r *http.Request, path string, attempt int, rest []byte) bool
		requests int // for the file
	}{
		"cut again and again": {func(h *fetchtest.Hub) func(http.ResponseWriter, *http.Request, string, int, []byte) bool {
			return func(w http.ResponseWriter, r *http.Request, path string, attempt int, rest []byte) bool {
				if path == bad && attempt <= 9 {
					fetchtest.Cut(w, r, h.Files[path], rest, 300_000)
				}
				return false
			}
		}, 10},
		"cut, and no ranges": {func(h *fetchtest.Hub) func(http.ResponseWriter, *http.Request, string, int, []byte) bool {
			return func(w http.ResponseWriter, r *http.Request, path string, attempt int, rest []byte) bool {
				if path != bad {
					return false
				}
				if attempt == 1 {
					fetchtest.Cut(w, r, h.Files[path], rest, 2_000_000)
				}
				fetchtest.Send(w, h.Files[path], 0)
				return true
			}
		}, 2},
		"another range than asked for": {func(h *fetchtest.Hub) func(http.ResponseWriter, *http.Request, string, int, []byte) bool {
			return func(w http.ResponseWriter, r *http.Request, path string, attempt int, rest []byte) bool {
				switch {
				case path == bad && attempt == 1:
					fetchtest.Cut(w, r, h.Files[path], rest, 2_000_000)
				case path == bad && attempt == 2:
					fetchtest.Send(w, h.Files[path], 1_000_000)
					return true
				}
				return false
			}
		}, 3},
		"the rest is refused": {func(h *fetchtest.Hub) func(http.ResponseWriter, *http.Request, string, int, []byte) bool {
			return func(w http.ResponseWriter, r *http.Request, path string, attempt int, rest []byte) bool {
				switch {
				case path == bad && attempt == 1:
					fetchtest.Cut(w, r, h.Files[path], rest, 2_000_000)
				case path == bad && attempt == 2:
					w.WriteHeader(http.StatusRequestedRangeNotSatisfiable)
					return true
				}
				return false
			}
		}, 3},
		"wrong bytes once": {func(h *fetchtest.Hub) func(http.ResponseWriter, *http.Request, string, int, []byte) bool {
			return func(w http.ResponseWriter, r *http.Request, path string, attempt int, rest []byte) bool {
				if path == bad && attempt == 1 {
					fetchtest.Send(w, content(len(rest), 77), 0)
					return true
				}
				return false
			}
		}, 2},
		"busy": {func(h *fetchtest.Hub) func(http.ResponseWriter, *http.Request, string, int, []byte) bool {
			return func(w http.ResponseWriter, r *http.Request, path string, attempt int, rest []byte) bool {
				if path == bad && attempt <= 3 {
					w.Header().Set("Retry-After", "0")
					http.Error(w, "later", []int{429, 503, 500}[attempt-1])
					return true
				}
				return false
			}
		}, 4},
		"silent": {func(h *fetchtest.Hub) func(http.ResponseWriter, *http.Request, string, int, []byte) bool {
			return func(w http.ResponseWriter, r *http.Request, path string, attempt int, rest []byte) bool {
				if path == bad && attempt == 1 {
					w.Header().Set("Content-Length", fmt.Sprint(len(rest)))
					w.Write(rest[:1000])
					w.(http.Flusher).Flush()
					<-r.Context().Done() // until the client gives up
					panic(http.ErrAbortHandler)
				}
				return false
			}
		}, 2},
	} {
		t.Run(name, func(t *testing.T) {
			h := fetchtest.New(t, id, files())
			h.Answer = c.answer(h)
			cl := client(t, h)
			if name == "silent" {
				cl.Stall = 200 * time.Millisecond
			}
			dir, err := get(t, cl, HuggingFace)
			if err != nil {
				t.Fatal(err)
			}
			holds(t, dir, h.Files)
			n := 0
			for _, r := range h.Requests {
				if r.Path == bad {
					n++
				}
			}
			if n != c.requests {
				t.Errorf("%d requests, want %d: %v", n, c.requests, h.Requests)
			}
		})
	}
}

func TestHubsThatLie(t *testing.T) {
	for name, c := range map[string]struct {
		answer func(w http.ResponseWriter, r *http.Request, rest []byte)
		want   string
	}{
		"always cut at once": {func(w http.ResponseWriter, r *http.Request, rest []byte) { fetchtest.Cut(w, r, rest, rest, 0) }, "tried 5 times"},
		"a longer length": {func(w http.ResponseWriter, r *http.Request, rest []byte) {
			fetchtest.Send(w, append(slices.Clone(rest), 1, 2, 3), 0)
		}, "announces 3000003 bytes, and the hub lists 3000000"},
		"a shorter length": {func(w http.ResponseWriter, r *http.Request, rest []byte) { fetchtest.Send(w, rest[1:], 0) }, "announces 2999999 bytes"},
		"no length, too much": {func(w http.ResponseWriter, r *http.Request, rest []byte) {
			w.(http.Flusher).Flush()
			w.Write(rest)
			w.Write(rest)
		}, "more than the 3000000 bytes came"},
		"wrong bytes": {func(w http.ResponseWriter, r *http.Request, rest []byte) {
			fetchtest.Send(w, content(len(rest), 99), 0)
		}, "twice: the hub, or something between"},
		"a page": {func(w http.ResponseWriter, r *http.Request, rest []byte) {
			w.Header().Set("Content-Type", "text/html; charset=utf-8")
			fmt.Fprint(w, "<html>Please log in</html>")
		}, "a web page in place of the file"},
		"private": {func(w http.ResponseWriter, r *http.Request, rest []byte) { http.Error(w, "", http.StatusForbidden) }, "set HF_TOKEN"},
		"gone":    {func(w http.ResponseWriter, r *http.Request, rest []byte) { http.NotFound(w, r) }, "there is no such repository, revision or file"},
		"to itself": {func(w http.ResponseWriter, r *http.Request, rest []byte) {
			http.Redirect(w, r, r.URL.String(), http.StatusFound)
		}, "more than 10 redirects"},
		"to another world": {func(w http.ResponseWriter, r *http.Request, rest []byte) {
			http.Redirect(w, r, "file:///etc/passwd", http.StatusFound)
		}, "redirect"},
		"a teapot": {func(w http.ResponseWriter, r *http.Request, rest []byte) { w.WriteHeader(http.StatusTeapot) }, "418"},
	} {
		t.Run(name, func(t *testing.T) {
			h := fetchtest.New(t, id, files())
			h.Answer = func(w http.ResponseWriter, r *http.Request, path string, attempt int, rest []byte) bool {
				if path == bad {
					c.answer(w, r, rest)
				}
				return path == bad
			}
			_, err := get(t, client(t, h), HuggingFace)
			if err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), bad) {
				t.Errorf("%v, want %q", err, c.want)
			}
			noneOf(t, h.Files[bad], content(3_000_000, 99))
			// The hub comes to its senses.
			h.Answer = nil
			dir, err := get(t, client(t, h), HuggingFace)
			if err != nil {
				t.Fatal(err)
			}
			holds(t, dir, h.Files)
		})
	}
}

// Names in a listing lead nowhere, and what could not be checked is not fetched.
func TestListingsThatLie(t *testing.T) {
	for name, c := range map[string]struct {
		change func(files []map[string]any)
		want   string
	}{
		"up":        {func(f []map[string]any) { f[0]["rfilename"] = "../../../evil" }, "leads out of the folder"},
		"absolute":  {func(f []map[string]any) { f[0]["rfilename"] = "/etc/evil" }, "leads out"},
		"up inside": {func(f []map[string]any) { f[0]["rfilename"] = "a/../../b" }, "leads out"},
		"not clean": {func(f []map[string]any) { f[0]["rfilename"] = "a//b" }, "leads out"},
		"backslash": {func(f []map[string]any) { f[0]["rfilename"] = `a\..\b` }, "leads out"},
		"no name":   {func(f []map[string]any) { f[0]["rfilename"] = "" }, "leads out"},
		"no hash":   {func(f []map[string]any) { delete(f[0], "blobId"); delete(f[0], "lfs") }, "no hash"},
		"bad hash":  {func(f []map[string]any) { f[0]["lfs"] = map[string]any{"sha256": "../../../x", "size": 5} }, "no hash"},
		"negative":  {func(f []map[string]any) { f[0]["size"], f[0]["lfs"] = -5, nil }, "a size of -5 bytes"},
		"huge":      {func(f []map[string]any) { f[0]["size"], f[0]["lfs"] = int64(1)<<60, nil }, "the disk of"},
	} {
		h := fetchtest.New(t, id, files())
		h.Listing = c.change
		if _, err := get(t, client(t, h), HuggingFace); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
		if h.Count() != 0 {
			t.Errorf("%s: files were asked for", name)
		}
	}
	for _, bad := range []string{"noslash", "a/b/c", "../x", "a/..", "-/-/", "org/na me", ""} {
		if err := CheckID(bad); err == nil {
			t.Errorf("%q is taken for a repository", bad)
		}
	}
	pages := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/html")
		fmt.Fprint(w, "<html>Welcome to the hotel</html>")
	}))
	defer pages.Close()
	h := fetchtest.New(t, id, files())
	c := client(t, h)
	c.HF.Endpoint = pages.URL
	if _, err := get(t, c, HuggingFace); err == nil || !strings.Contains(err.Error(), "not with a listing") {
		t.Errorf("a page in place of a listing: %v", err)
	}
}

// Where ModelScope lists no hash the size alone is checked, and that is said.
func TestNoHash(t *testing.T) {
	h := fetchtest.New(t, id, files())
	h.Listing = func(f []map[string]any) { f[0]["Sha256"] = "" }
	c := client(t, h)
	said := ""
	c.Log = func(format string, args ...any) { said += fmt.Sprintf(format, args...) }
	dir, err := get(t, c, ModelScope)
	if err != nil {
		t.Fatal(err)
	}
	holds(t, dir, h.Files)
	if !strings.Contains(said, "LICENSE: the hub lists no hash") {
		t.Errorf("said %q", said)
	}
}

// The token goes to the hub, and to no other host that the hub sends one to, however it is called.
func TestTokenStaysAtItsHost(t *testing.T) {
	h := fetchtest.New(t, id, files())
	h.Token = "hf_secret"
	var leaked, served atomic.Int32
	store := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "" || strings.Contains(r.URL.String(), "secret") {
			leaked.Add(1)
		}
		served.Add(1)
		fetchtest.Send(w, h.Files[strings.TrimPrefix(r.URL.Path, "/")], 0)
	}))
	defer store.Close()
	elsewhere := strings.Replace(store.URL, "127.0.0.1", "localhost", 1)
	h.Answer = func(w http.ResponseWriter, r *http.Request, path string, attempt int, rest []byte) bool {
		to := store.URL
		if path == bad {
			to = elsewhere
		}
		http.Redirect(w, r, to+"/"+path, http.StatusFound)
		return true
	}
	c := client(t, h)
	if _, err := get(t, c, HuggingFace); err == nil || !strings.Contains(err.Error(), "set HF_TOKEN") {
		t.Fatalf("without a token: %v", err)
	}
	c.HF.Token = h.Token
	dir, err := get(t, c, HuggingFace)
	if err != nil {
		t.Fatal(err)
	}
	holds(t, dir, h.Files)
	if leaked.Load() != 0 || served.Load() == 0 {
		t.Errorf("the token was shown %d of %d times", leaked.Load(), served.Load())
	}
}

// What was interrupted goes on in another run from the byte where it was, and is checked whole.
func TestInterrupted(t *testing.T) {
	h := fetchtest.New(t, id, map[string][]byte{bad: content(5_000_000, 9)})
	c := client(t, h)
	r, err := c.List(t.Context(), HuggingFace, id, false, "")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	h.Answer = func(w http.ResponseWriter, r *http.Request, path string, attempt int, rest []byte) bool {
		if attempt > 1 {
			return false
		}
		w.Header().Set("Content-Length", fmt.Sprint(len(rest)))
		w.Write(rest[:2_000_000])
		w.(http.Flusher).Flush()
		<-r.Context().Done()
		panic(http.ErrAbortHandler)
	}
	if _, err := c.Get(ctx, r, r.Files, func(p Progress) {
		if p.There >= 2_000_000 {
			cancel()
		}
	}); !errors.Is(err, context.Canceled) {
		t.Fatalf("interrupted: %v", err)
	}
	var at Progress
	dir, err := c.Get(t.Context(), r, r.Files, func(p Progress) { at = p })
	if err != nil {
		t.Fatal(err)
	}
	holds(t, dir, h.Files)
	if at.There != 5_000_000 || at.Came != 3_000_000 {
		t.Errorf("the second run ended at %+v", at)
	}
	if last := h.Requests[len(h.Requests)-1]; last.Range != "bytes=2000000-" {
		t.Errorf("went on by %q", last.Range)
	}
	// A partial file that some other program has spoilt.
	if err := os.RemoveAll(filepath.Join(dir, "../../blobs")); err != nil {
		t.Fatal(err)
	}
	p, err := newPlace(r)
	if err != nil {
		t.Fatal(err)
	}
	for _, spoilt := range [][]byte{content(6_000_000, 3), content(4_000_000, 3)} {
		if err := errors.Join(os.MkdirAll(p.blobs, 0o777), os.WriteFile(p.partial(r.Files[0]), spoilt, 0o666)); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Get(t.Context(), r, r.Files, nil); err != nil {
			t.Fatal(err)
		}
		holds(t, dir, h.Files)
		if err := os.RemoveAll(p.blobs); err != nil {
			t.Fatal(err)
		}
	}
}

func TestTokenPlaces(t *testing.T) {
	h := fetchtest.New(t, id, files())
	client(t, h)
	token := func() string {
		c, err := FromEnvironment()
		if err != nil {
			t.Fatal(err)
		}
		return c.HF.Token
	}
	if got := token(); got != "" {
		t.Errorf("none: %q", got)
	}
	if err := os.WriteFile(filepath.Join(os.Getenv("HF_HOME"), "token"), []byte("from_home\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := token(); got != "from_home" {
		t.Errorf("of the login: %q", got)
	}
	other := filepath.Join(t.TempDir(), "other")
	if err := os.WriteFile(other, []byte("from_path"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("HF_TOKEN_PATH", other)
	if got := token(); got != "from_path" {
		t.Errorf("of HF_TOKEN_PATH: %q", got)
	}
	t.Setenv("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")
	if got := token(); got != "" {
		t.Errorf("without the implicit: %q", got)
	}
	t.Setenv("HF_TOKEN", " from_env ")
	if got := token(); got != "from_env" {
		t.Errorf("of HF_TOKEN: %q", got)
	}
	for value, want := range map[string]bool{"1": true, "true": true, "ON": true, "0": false, "": false, "no": false} {
		t.Setenv("HF_HUB_OFFLINE", value)
		if Offline() != want {
			t.Errorf("HF_HUB_OFFLINE=%s", value)
		}
	}
}
