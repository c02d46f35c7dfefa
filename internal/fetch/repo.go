// Package fetch gets a model's or a dataset's files from a hub into the folders where its own programs, and this one,
// look for them. It is the only package that opens a connection.
//
// Every file is checked against the size and the hash that the hub lists before it gets its name. What is cut off goes on
// from where it was, also in another run. A hub is not trusted: names lead nowhere outside the folder, what is longer than
// announced is not read on, and a token goes to no other host than the one it is for.
package fetch

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"path"
	"path/filepath"
	"regexp"
	"strings"

	"qlora/internal/hubcache"
	"qlora/internal/strictjson"
)

// Hub names a hub.
type Hub string

const (
	HuggingFace Hub = hubcache.HuggingFace
	ModelScope  Hub = hubcache.ModelScope
)

// Repo is a repository of a hub at one revision.
type Repo struct {
	Hub      Hub
	Dataset  bool   // else a model
	ID       string // org/name
	Revision string // a branch, a tag or a commit
	Commit   string // that the revision stands for; ModelScope does not say which
	Files    []File
}

// File is a file of a repository.
type File struct {
	Path   string // with slashes, from the top of the repository
	Size   int64
	SHA256 string // one of the two is known, but for some files of ModelScope
	Git    string // sha1 that git gives the file's content
}

// hash is what a file's content is checked by, and its name in the cache of Hugging Face.
func (f File) hash() string {
	if f.SHA256 != "" {
		return f.SHA256
	}
	return f.Git
}

// CheckID refuses what is no org/name.
func CheckID(id string) error {
	if !hubcache.IsID(id) || strings.Contains(id, "..") || strings.Contains(id, "--") {
		return fmt.Errorf("%q is no name of a repository: write it as org/name", id)
	}
	return nil
}

// maxListing bounds the size of a repository's listing.
const maxListing = 32 << 20

// List asks a hub for the files of a repository at a revision; "" is its main one.
func (c *Client) List(ctx context.Context, hub Hub, id string, dataset bool, revision string) (*Repo, error) {
	if err := CheckID(id); err != nil {
		return nil, err
	}
	if revision == "" {
		revision = map[Hub]string{HuggingFace: "main", ModelScope: "master"}[hub]
	}
	if !filepath.IsLocal(filepath.FromSlash(revision)) {
		return nil, fmt.Errorf("%q is no revision", revision)
	}
	r := &Repo{Hub: hub, ID: id, Dataset: dataset, Revision: revision}
	list := c.listHuggingFace
	if hub == ModelScope {
		list = c.listModelScope
	}
	err := list(ctx, r)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", id, err)
	}
	for _, f := range r.Files {
		if err := f.check(hub); err != nil {
			return nil, fmt.Errorf("%s: the hub lists %q: %w", id, f.Path, err)
		}
	}
	if len(r.Files) == 0 {
		return nil, fmt.Errorf("%s: the hub lists no files", id)
	}
	return r, nil
}

var commitPattern = regexp.MustCompile(`^[0-9a-f]{7,64}$`)

var hexPattern = regexp.MustCompile(`^(?:[0-9a-f]{40}|[0-9a-f]{64})$`)

// check refuses a file whose name leads elsewhere, or whose content could not be checked.
func (f File) check(hub Hub) error {
	switch {
	case !filepath.IsLocal(filepath.FromSlash(f.Path)) || path.Clean(f.Path) != f.Path || strings.ContainsAny(f.Path, "\\:\x00"):
		return errors.New("that name leads out of the folder")
	case f.Size < 0:
		return fmt.Errorf("a size of %d bytes", f.Size)
	case f.hash() == "" && hub == ModelScope: // only its size can be checked
	case !hexPattern.MatchString(f.hash()):
		return fmt.Errorf("%q is no hash that its content could be checked by", f.hash())
	}
	return nil
}

func (c *Client) listHuggingFace(ctx context.Context, r *Repo) error {
	kind := "models"
	if r.Dataset {
		kind = "datasets"
	}
	var listing struct {
		SHA      string `json:"sha"`
		Siblings []struct {
			Name   string `json:"rfilename"`
			Size   int64  `json:"size"`
			BlobID string `json:"blobId"`
			LFS    *struct {
				SHA256 string `json:"sha256"`
				Size   int64  `json:"size"`
			} `json:"lfs"`
		} `json:"siblings"`
	}
	address := fmt.Sprintf("%s/api/%s/%s/revision/%s?blobs=true", c.HF.Endpoint, kind, r.ID, url.PathEscape(r.Revision))
	if err := c.getJSON(ctx, c.HF, address, &listing); err != nil {
		return err
	}
	if !commitPattern.MatchString(listing.SHA) {
		return fmt.Errorf("the hub names the commit %q, which is none", listing.SHA)
	}
	r.Commit = listing.SHA
	for _, s := range listing.Siblings {
		f := File{Path: s.Name, Size: s.Size, Git: s.BlobID}
		if s.LFS != nil {
			f = File{Path: s.Name, Size: s.LFS.Size, SHA256: s.LFS.SHA256}
		}
		r.Files = append(r.Files, f)
	}
	return nil
}

func (c *Client) listModelScope(ctx context.Context, r *Repo) error {
	if r.Dataset {
		return errors.New("datasets are fetched from Hugging Face alone: use modelscope download --dataset, or --hub hf")
	}
	var listing struct {
		Code    int
		Message string
		Data    struct {
			Files []struct {
				Path, Type, Sha256 string
				Size               int64
			}
		}
	}
	address := fmt.Sprintf("%s/api/v1/models/%s/repo/files?Revision=%s&Recursive=true", c.MS.Endpoint, r.ID, url.QueryEscape(r.Revision))
	if err := c.getJSON(ctx, c.MS, address, &listing); err != nil {
		return err
	}
	if listing.Code != 200 {
		return fmt.Errorf("ModelScope answers with code %d: %s", listing.Code, listing.Message)
	}
	r.Commit = r.Revision
	for _, f := range listing.Data.Files {
		if f.Type != "tree" {
			r.Files = append(r.Files, File{Path: f.Path, Size: f.Size, SHA256: strings.ToLower(f.Sha256)})
		}
	}
	return nil
}

// address is where a file's content is.
func (c *Client) address(r *Repo, f File) string {
	escaped := (&url.URL{Path: f.Path}).EscapedPath()
	switch {
	case r.Hub == ModelScope:
		return fmt.Sprintf("%s/api/v1/models/%s/repo?Revision=%s&FilePath=%s", c.MS.Endpoint, r.ID, url.QueryEscape(r.Commit), url.QueryEscape(f.Path))
	case r.Dataset:
		return fmt.Sprintf("%s/datasets/%s/resolve/%s/%s", c.HF.Endpoint, r.ID, r.Commit, escaped)
	}
	return fmt.Sprintf("%s/%s/resolve/%s/%s", c.HF.Endpoint, r.ID, r.Commit, escaped)
}

// getJSON reads an answer of at most maxListing bytes. A connection that fails is tried again.
func (c *Client) getJSON(ctx context.Context, s Site, address string, into any) error {
	return c.retry(ctx, func() (bool, error) {
		resp, err := c.get(ctx, s, address, 0)
		if err != nil {
			return false, err
		}
		defer resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			return false, statusError(resp)
		}
		text, err := readAll(resp.Body, maxListing)
		if err != nil {
			return false, err
		}
		if webPage(resp) || !json.Valid(text) {
			return false, final(fmt.Errorf("%s answers with a page (%s), not with a listing: is something between here and the hub that wants a login?", hostOf(address), resp.Header.Get("Content-Type")))
		}
		if err := strictjson.Unmarshal(text, maxListing, into); err != nil {
			return false, final(fmt.Errorf("%s: %w", hostOf(address), err))
		}
		return true, nil
	})
}

func hostOf(address string) string {
	u, err := url.Parse(address)
	if err != nil {
		return address
	}
	return u.Host
}
