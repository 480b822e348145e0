package guard_test

import (
	"encoding/json"
	"fmt"
	"mime"
	"net/http"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"unicode/utf8"

	"github.com/oncemill/oncemill/guard"
)

// object is a part of the description.
type object = map[string]any

var description = sync.OnceValue(func() object {
	text, err := os.ReadFile("openapi.json")
	if err != nil {
		panic(err)
	}
	var all object
	if err := json.Unmarshal(text, &all); err != nil {
		panic(err)
	}
	return all
})

// at returns what is at a path of the description, and follows references.
func at(from any, path ...string) any {
	for _, step := range path {
		from = follow(follow(from)[step])
	}
	return from
}

func follow(part any) object {
	o, _ := part.(object)
	if ref, ok := o["$ref"].(string); ok {
		return at(description(), strings.Split(strings.TrimPrefix(ref, "#/"), "/")...).(object)
	}
	return o
}

func TestTheDescriptionHasAllEndpointsAndNoOthers(t *testing.T) {
	t.Parallel()
	var described []string
	for path, methods := range at(description(), "paths").(object) {
		for method := range methods.(object) {
			described = append(described, strings.ToUpper(method)+" "+path)
		}
	}
	served := guard.Endpoints()
	slices.Sort(described)
	slices.Sort(served)
	if !slices.Equal(described, served) {
		t.Errorf("described are %q, served %q", described, served)
	}
}

func TestTheDescriptionIsServed(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	text, err := os.ReadFile("openapi.json")
	noError(t, err)
	if got := s.get("/openapi.json"); got.status != 200 || string(got.body) != string(text) {
		t.Errorf("status %d, %d bytes, want the %d of openapi.json", got.status, len(got.body), len(text))
	}
}

// Every reference leads somewhere, and every example is as its schema says.
func TestTheDescriptionHoldsTogether(t *testing.T) {
	t.Parallel()
	var walk func(where string, part any)
	walk = func(where string, part any) {
		switch part := part.(type) {
		case []any:
			for i, one := range part {
				walk(where+"/"+strconv.Itoa(i), one)
			}
		case object:
			if ref, ok := part["$ref"].(string); ok && follow(part) == nil {
				t.Errorf("%s: %s leads nowhere", where, ref)
			}
			schema, has := part["schema"]
			if example, ok := part["example"]; ok && has {
				wantSchema(t, where, schema, example)
			}
			examples, _ := part["examples"].(object)
			for name, example := range examples {
				if has {
					wantSchema(t, where+" example "+name, schema, example.(object)["value"])
				}
			}
			for name, one := range part {
				walk(where+"/"+name, one)
			}
		}
	}
	walk("", any(description()))
}

// operation returns what the description says of a request.
func operation(method, target string) object {
	path, _, _ := strings.Cut(target, "?")
	paths := at(description(), "paths").(object)
	found, ok := paths[path]
	if !ok {
		first, rest, _ := strings.Cut(strings.TrimPrefix(target, "/"), "/")
		if found, ok = paths["/"+first+"/{request_id}"]; !ok || rest == "" {
			return nil
		}
	}
	o, _ := found.(object)[strings.ToLower(method)].(object)
	if o == nil { // another method is answered as the path says
		for _, o := range found.(object) {
			return o.(object)
		}
	}
	return o
}

// wantDescribed wants an answer to be as the description has it.
func wantDescribed(t *testing.T, method, target string, a *answer) {
	t.Helper()
	o := operation(method, target)
	if o == nil {
		a.refused(http.StatusNotFound, "not_found", "Not Found")
		return
	}
	response := follow(o["responses"].(object)[strconv.Itoa(a.status)])
	if response == nil {
		t.Errorf("%s: status %d is not described: %s", a.what, a.status, a.body)
		return
	}
	if !utf8.Valid(a.body) {
		t.Errorf("%s: %q is not UTF-8", a.what, a.body)
	}
	kind, _, _ := mime.ParseMediaType(a.header.Get("Content-Type"))
	content, ok := at(response, "content", kind).(object)
	if !ok || content == nil {
		t.Errorf("%s: %d with content type %q is not described", a.what, a.status, kind)
		return
	}
	for name, header := range follow(response["headers"]) {
		if value := a.header.Get(name); value == "" || at(header, "schema", "type") == nil {
			t.Errorf("%s: %d has no header %s", a.what, a.status, name)
		}
	}
	if kind == "application/json" && a.status != 200 || kind == "application/json" && target != "/openapi.json" {
		wantSchema(t, a.what, content["schema"], plainJSON(t, a))
	}
	if a.header.Get("Cache-Control") != "no-store" || a.header.Get("X-Content-Type-Options") != "nosniff" {
		t.Errorf("%s: headers %v", a.what, a.header)
	}
}

func plainJSON(t *testing.T, a *answer) (value any) {
	t.Helper()
	if err := json.Unmarshal(a.body, &value); err != nil {
		t.Errorf("%s: %v: %s", a.what, err, a.body)
	}
	return value
}

func wantSchema(t *testing.T, where string, schema, value any) {
	t.Helper()
	if err := conforms(schema, value, ""); err != nil {
		t.Errorf("%s: %v", where, err)
	}
}

// conforms checks a value by the words of JSON Schema that the description uses. Unlike
// them it wants each member of an object to be described.
func conforms(schema, value any, at string) error {
	s := follow(schema)
	for name, rule := range s {
		check, known := words()[name]
		if !known {
			return fmt.Errorf("%s: the test does not know the word %s", at, name)
		}
		if err := check(rule, value, at, s); err != nil {
			return err
		}
	}
	return nil
}

type word func(rule, value any, at string, schema object) error

func passed(any, any, string, object) error { return nil }

// words are those of JSON Schema that the description uses.
func words() map[string]word {
	return map[string]word{
		"title": passed, "description": passed, "default": passed, "if": passed, "then": passed, "examples": passed,
		"type": wantType, "required": wantRequired, "properties": wantProperties, "items": wantItems, "pattern": wantPattern,
		"minimum": wantAtLeast, "maximum": wantAtMost, "minLength": wantLength, "maxLength": wantLength, "minItems": wantLength,
		"oneOf": func(rule, value any, at string, _ object) error { return alternatives(rule, value, at, 1) },
		"anyOf": func(rule, value any, at string, _ object) error { return alternatives(rule, value, at, 99) },
		"not": func(rule, value any, at string, _ object) error {
			if conforms(rule, value, at) == nil {
				return fmt.Errorf("%s: %v is what it must not be", at, value)
			}
			return nil
		},
		"const": func(rule, value any, at string, _ object) error { return wantOne([]any{rule}, value, at, nil) },
		"enum":  wantOne,
	}
}

func wantOne(rule, value any, at string, _ object) error {
	for _, one := range rule.([]any) {
		if reflect.DeepEqual(one, value) {
			return nil
		}
	}
	return fmt.Errorf("%s: %v is none of %v", at, value, rule)
}

func alternatives(rule, value any, at string, most int) error {
	n := 0
	var errs []error
	for _, one := range rule.([]any) {
		if err := conforms(one, value, at); err != nil {
			errs = append(errs, err)
		} else {
			n++
		}
	}
	if n == 0 || n > most {
		return fmt.Errorf("%s: %d alternatives fit: %v", at, n, errs)
	}
	return nil
}

func typeOf(value any) []string {
	switch value := value.(type) {
	case nil:
		return []string{"null"}
	case bool:
		return []string{"boolean"}
	case string:
		return []string{"string"}
	case float64:
		if value == float64(int64(value)) {
			return []string{"number", "integer"}
		}
		return []string{"number"}
	case []any:
		return []string{"array"}
	}
	return []string{"object"}
}

func wantType(rule, value any, at string, _ object) error {
	types, ok := rule.([]any)
	if !ok {
		types = []any{rule}
	}
	for _, one := range types {
		if slices.Contains(typeOf(value), one.(string)) {
			return nil
		}
	}
	return fmt.Errorf("%s: %v is no %v", at, value, rule)
}

func wantRequired(rule, value any, at string, _ object) error {
	members, _ := value.(object)
	for _, name := range rule.([]any) {
		if _, ok := members[name.(string)]; !ok {
			return fmt.Errorf("%s: %s is missing", at, name)
		}
	}
	return nil
}

func wantProperties(rule, value any, at string, _ object) error {
	members, ok := value.(object)
	if !ok {
		return fmt.Errorf("%s: %v is no object", at, value)
	}
	for name, one := range members {
		schema, ok := rule.(object)[name]
		if !ok {
			return fmt.Errorf("%s: %s is not described", at, name)
		}
		if err := conforms(schema, one, at+"/"+name); err != nil {
			return err
		}
	}
	return nil
}

func wantItems(rule, value any, at string, _ object) error {
	items, _ := value.([]any)
	for i, item := range items {
		if err := conforms(rule, item, at+"/"+strconv.Itoa(i)); err != nil {
			return err
		}
	}
	return nil
}

func wantPattern(rule, value any, at string, _ object) error {
	text, ok := value.(string)
	pattern := regexp.MustCompile(`\\u([0-9A-F]{4})`).ReplaceAllString(rule.(string), `\x{$1}`)
	if ok && !regexp.MustCompile(pattern).MatchString(text) {
		return fmt.Errorf("%s: %q does not match %s", at, text, rule)
	}
	return nil
}

func wantAtLeast(rule, value any, at string, _ object) error {
	if n, ok := value.(float64); ok && n < rule.(float64) {
		return fmt.Errorf("%s: %v is less than %v", at, n, rule)
	}
	return nil
}

func wantAtMost(rule, value any, at string, _ object) error {
	if n, ok := value.(float64); ok && n > rule.(float64) {
		return fmt.Errorf("%s: %v is more than %v", at, n, rule)
	}
	return nil
}

func wantLength(_, value any, at string, s object) error {
	n := -1
	switch value := value.(type) {
	case string:
		n = len(value)
	case []any:
		n = len(value)
	}
	if n < 0 {
		return nil
	}
	for _, least := range []string{"minLength", "minItems"} {
		if rule, ok := s[least].(float64); ok && n < int(rule) {
			return fmt.Errorf("%s: has %d, at least %v", at, n, rule)
		}
	}
	if rule, ok := s["maxLength"].(float64); ok && n > int(rule) {
		return fmt.Errorf("%s: has %d, at most %v", at, n, rule)
	}
	return nil
}
