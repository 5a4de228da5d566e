// Runs h2spec's tests of a server and prints a line of JSON for each result. The upstream command prints text for
// people, and its JUnit report has no test numbers.
package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"log"
	"os"
	"time"

	"github.com/summerwind/h2spec/config"
	"github.com/summerwind/h2spec/generic"
	"github.com/summerwind/h2spec/hpack"
	"github.com/summerwind/h2spec/http2"
	"github.com/summerwind/h2spec/spec"
)

type result struct {
	ID          string `json:"id"`
	Description string `json:"description"`
	Outcome     string `json:"outcome"`
	Error       string `json:"error,omitempty"`
}

func main() {
	c := &config.Config{MaxHeaderLen: 4000, Insecure: true, Strict: true}
	flag.StringVar(&c.Host, "host", "127.0.0.1", "server host")
	flag.IntVar(&c.Port, "port", 0, "server port")
	flag.StringVar(&c.Path, "path", "/grpc.health.v1.Health/Check", "RPC, which must accept an empty message")
	flag.DurationVar(&c.Timeout, "timeout", 2*time.Second, "time limit of each test")
	flag.BoolVar(&c.TLS, "tls", false, "connect over TLS; the certificate is not verified")
	flag.BoolVar(&c.DryRun, "list", false, "list the tests without running them")
	flag.Parse()
	c.Sections = flag.Args()

	results := json.NewEncoder(os.Stdout)
	discardProgress()
	for _, group := range []*spec.TestGroup{generic.Spec(), http2.Spec(), hpack.Spec()} {
		group.Test(c)
		if err := report(results, group); err != nil {
			log.Fatal(err)
		}
	}
}

// discardProgress silences h2spec's own output, which goes to os.Stdout.
func discardProgress() {
	null, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	if err != nil {
		log.Fatal(err)
	}
	os.Stdout = null
}

func report(results *json.Encoder, group *spec.TestGroup) error {
	for i, test := range append(group.Tests, group.StrictTests...) {
		if test.Result == nil {
			continue
		}
		r := result{ID: fmt.Sprintf("%s/%d", group.ID(), i+1), Description: test.Desc, Outcome: "passed"}
		switch {
		case test.Result.Skipped:
			r.Outcome = "skipped"
		case test.Result.Failed:
			r.Outcome, r.Error = "failed", test.Result.Error.Error()
		}
		if err := results.Encode(r); err != nil {
			return err
		}
	}
	for _, subgroup := range group.Groups {
		if err := report(results, subgroup); err != nil {
			return err
		}
	}
	return nil
}
