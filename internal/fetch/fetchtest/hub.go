// Package fetchtest is a hub on this machine, for tests, that can misbehave.
package fetchtest

import (
	"crypto/sha1"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
)

// Commit is the one that every revision of the hub stands for.
const Commit = "0123456789abcdef0123456789abcdef01234567"

// Hub serves one repository by the addresses of Hugging Face and of ModelScope.
type Hub struct {
	*httptest.Server
	ID    string
	Files map[string][]byte // those of 100 bytes and more are large files, with a sha256
	Token string            // where not empty, asked for

	// Answer, where set, may answer for a file in its own way: attempt counts from 1, rest is what was asked for.
	Answer func(w http.ResponseWriter, r *http.Request, path string, attempt int, rest []byte) (answered bool)
	// Listing, where set, changes the list of files before it is sent.
	Listing func(files []map[string]any)

	mu       sync.Mutex
	attempts map[string]int
	Requests []Request
}

// Request is one that came for a file.
type Request struct{ Path, Range, Authorization string }

// New starts a hub of a repository.
func New(t testing.TB, id string, files map[string][]byte) *Hub {
	h := &Hub{ID: id, Files: files, attempts: map[string]int{}}
	h.Server = httptest.NewServer(h)
	t.Cleanup(h.Close)
	return h
}

// Count is how many requests came for files.
func (h *Hub) Count() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.Requests)
}

// SHA256 of a file's content.
func SHA256(content []byte) string {
	sum := sha256.Sum256(content)
	return hex.EncodeToString(sum[:])
}

// Git is git's name of a file's content.
func Git(content []byte) string {
	sum := sha1.Sum(append(fmt.Appendf(nil, "blob %d\x00", len(content)), content...))
	return hex.EncodeToString(sum[:])
}

// ServeHTTP answers.
func (h *Hub) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if h.Token != "" && r.Header.Get("Authorization") != "Bearer "+h.Token {
		http.Error(w, "who are you?", http.StatusUnauthorized)
		return
	}
	model, dataset := "/api/models/"+h.ID, "/api/datasets/"+h.ID
	switch p := r.URL.Path; {
	case strings.HasPrefix(p, model+"/revision/"), strings.HasPrefix(p, dataset+"/revision/"):
		h.send(w, map[string]any{"sha": Commit, "siblings": h.list(false)})
	case p == "/api/v1/models/"+h.ID+"/repo/files":
		h.send(w, map[string]any{"Code": 200, "Data": map[string]any{"Files": h.list(true)}})
	case p == "/api/v1/models/"+h.ID+"/repo":
		h.file(w, r, r.URL.Query().Get("FilePath"))
	case strings.HasPrefix(p, "/"+h.ID+"/resolve/"+Commit+"/"):
		h.file(w, r, strings.TrimPrefix(p, "/"+h.ID+"/resolve/"+Commit+"/"))
	case strings.HasPrefix(p, "/datasets/"+h.ID+"/resolve/"+Commit+"/"):
		h.file(w, r, strings.TrimPrefix(p, "/datasets/"+h.ID+"/resolve/"+Commit+"/"))
	default:
		http.NotFound(w, r)
	}
}

func (h *Hub) send(w http.ResponseWriter, object any) {
	w.Header().Set("Content-Type", "application/json")
	if err := json.NewEncoder(w).Encode(object); err != nil {
		panic(err)
	}
}

func (h *Hub) list(modelScope bool) []map[string]any {
	var all []map[string]any
	for _, path := range slices.Sorted(maps.Keys(h.Files)) {
		content := h.Files[path]
		switch {
		case modelScope:
			all = append(all, map[string]any{"Path": path, "Type": "blob", "Size": len(content), "Sha256": SHA256(content)})
		case len(content) >= 100:
			all = append(all, map[string]any{"rfilename": path, "size": len(content), "blobId": Git([]byte("a pointer")), "lfs": map[string]any{"sha256": SHA256(content), "size": len(content)}})
		default:
			all = append(all, map[string]any{"rfilename": path, "size": len(content), "blobId": Git(content)})
		}
	}
	if h.Listing != nil {
		h.Listing(all)
	}
	return all
}

// file sends a file, from the offset that a Range asks for.
func (h *Hub) file(w http.ResponseWriter, r *http.Request, path string) {
	h.mu.Lock()
	h.attempts[path]++
	attempt := h.attempts[path]
	h.Requests = append(h.Requests, Request{path, r.Header.Get("Range"), r.Header.Get("Authorization")})
	h.mu.Unlock()
	content, ok := h.Files[path]
	if !ok {
		http.NotFound(w, r)
		return
	}
	from := 0
	if text, ok := strings.CutPrefix(r.Header.Get("Range"), "bytes="); ok {
		from, _ = strconv.Atoi(strings.TrimSuffix(text, "-"))
	}
	if h.Answer != nil && h.Answer(w, r, path, attempt, content[min(from, len(content)):]) {
		return
	}
	Send(w, content, from)
}

// Send answers with a file's content from an offset on, as a good hub does.
func Send(w http.ResponseWriter, content []byte, from int) {
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("Content-Length", strconv.Itoa(len(content)-from))
	if from > 0 {
		w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, len(content)-1, len(content)))
		w.WriteHeader(http.StatusPartialContent)
	}
	w.Write(content[from:])
}

// Cut sends a part of what is left, and ends the connection.
func Cut(w http.ResponseWriter, r *http.Request, content, rest []byte, n int) {
	from := len(content) - len(rest)
	w.Header().Set("Content-Length", strconv.Itoa(len(rest)))
	if from > 0 {
		w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, len(content)-1, len(content)))
		w.WriteHeader(http.StatusPartialContent)
	}
	w.Write(rest[:min(n, len(rest))])
	w.(http.Flusher).Flush()
	panic(http.ErrAbortHandler)
}
