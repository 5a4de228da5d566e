// Checks the behaviours that clients rely on, with two servers, and prints a line for each behaviour. One server is in
// plain text without tokens, the other has TLS and tokens.
//
//	go run ./check ADDRESS SECURE_ADDRESS CA_FILE TOKEN
package main

import (
	"context"
	"fmt"
	"io"
	"log"
	"os"
	"slices"
	"time"

	"digitserve/examples/go/pb"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/encoding/gzip"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/grpc/reflection/grpc_reflection_v1alpha"
	"google.golang.org/grpc/status"
)

const (
	imageSize = 28 * 28
	timeout   = 30 * time.Second
)

// checks holds the clients and the sample digits, 10 of each from 0 to 9.
type checks struct {
	plain, secure grpc.ClientConnInterface
	token         string
	samples       []byte
}

func main() {
	if len(os.Args) != 5 {
		log.Fatal("usage: check ADDRESS SECURE_ADDRESS CA_FILE TOKEN")
	}
	c, err := newChecks(os.Args[1], os.Args[2], os.Args[3], os.Args[4])
	if err != nil {
		log.Fatal(err)
	}
	failed := 0
	for _, behaviour := range []struct {
		name  string
		check func(*checks, context.Context) error
	}{
		{"unary", (*checks).unary},
		{"stream", (*checks).stream},
		{"deadline", (*checks).deadline},
		{"cancel", (*checks).cancel},
		{"gzip", (*checks).gzip},
		{"metadata", (*checks).metadata},
		{"too large", (*checks).tooLarge},
		{"health", (*checks).health},
		{"reflection v1", (*checks).reflectionV1},
		{"reflection v1alpha", (*checks).reflectionV1Alpha},
		{"tls", (*checks).tls},
		{"wrong token", (*checks).wrongToken},
	} {
		ctx, cancel := context.WithTimeout(context.Background(), timeout)
		if err := behaviour.check(c, ctx); err != nil {
			failed++
			fmt.Printf("%s: FAILED: %v\n", behaviour.name, err)
		} else {
			fmt.Printf("%s: ok\n", behaviour.name)
		}
		cancel()
	}
	if failed > 0 {
		os.Exit(1)
	}
}

func newChecks(address, secureAddress, caFile, token string) (*checks, error) {
	samples, err := os.ReadFile("../../samples/digits-100-images-idx3-ubyte")
	if err != nil {
		return nil, err
	}
	plain, err := grpc.NewClient(address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, err
	}
	tls, err := credentials.NewClientTLSFromFile(caFile, "")
	if err != nil {
		return nil, err
	}
	secure, err := grpc.NewClient(secureAddress, grpc.WithTransportCredentials(tls))
	if err != nil {
		return nil, err
	}
	return &checks{plain: plain, secure: secure, token: token, samples: samples[16:]}, nil
}

// image returns the first sample of a digit.
func (c *checks) image(digit int) []byte {
	return c.samples[digit*10*imageSize:][:imageSize]
}

func (c *checks) digits() pb.DigitServiceClient {
	return pb.NewDigitServiceClient(c.plain)
}

func (c *checks) unary(ctx context.Context) error {
	pixels := slices.Concat(c.image(0), c.image(1), c.image(2))
	reply, err := c.digits().Predict(ctx, &pb.PredictRequest{Pixels: pixels})
	if err != nil {
		return err
	}
	if want := []uint32{0, 1, 2}; !slices.Equal(reply.Digits, want) || len(reply.Activations) != 30 {
		return fmt.Errorf("got digits %v and %d activations; want %v and 30", reply.Digits, len(reply.Activations), want)
	}
	return nil
}

// stream sends three messages and expects a reply to each, in order.
func (c *checks) stream(ctx context.Context) error {
	stream, err := c.digits().PredictStream(ctx)
	if err != nil {
		return err
	}
	for digit := range 3 {
		if err := stream.Send(&pb.PredictRequest{Pixels: c.image(digit)}); err != nil {
			return err
		}
	}
	if err := stream.CloseSend(); err != nil {
		return err
	}
	for digit := range uint32(3) {
		reply, err := stream.Recv()
		if err != nil {
			return err
		}
		if !slices.Equal(reply.Digits, []uint32{digit}) {
			return fmt.Errorf("got digits %v; want [%d]", reply.Digits, digit)
		}
	}
	if _, err := stream.Recv(); err != io.EOF {
		return fmt.Errorf("got %v; want the end of the stream", err)
	}
	return nil
}

// deadline leaves a stream idle until its deadline ends it.
func (c *checks) deadline(ctx context.Context) error {
	short, cancel := context.WithTimeout(ctx, 200*time.Millisecond)
	defer cancel()
	stream, err := c.digits().PredictStream(short)
	if err == nil {
		_, err = stream.Recv()
	}
	if err := expect(err, codes.DeadlineExceeded); err != nil {
		return err
	}
	return c.unary(ctx)
}

// cancel cancels a stream after its first reply; the connection stays usable.
func (c *checks) cancel(ctx context.Context) error {
	cancellable, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := c.digits().PredictStream(cancellable)
	if err != nil {
		return err
	}
	if err := stream.Send(&pb.PredictRequest{Pixels: c.image(0)}); err != nil {
		return err
	}
	if _, err := stream.Recv(); err != nil {
		return err
	}
	cancel()
	if _, err = stream.Recv(); status.Code(err) != codes.Canceled {
		return expect(err, codes.Canceled)
	}
	return c.unary(ctx)
}

func (c *checks) gzip(ctx context.Context) error {
	reply, err := c.digits().Predict(ctx, &pb.PredictRequest{Pixels: c.image(2)}, grpc.UseCompressor(gzip.Name))
	if err != nil {
		return err
	}
	if !slices.Equal(reply.Digits, []uint32{2}) {
		return fmt.Errorf("got digits %v; want [2]", reply.Digits)
	}
	return nil
}

// metadata sends a request id and expects it in the trailing metadata.
func (c *checks) metadata(ctx context.Context) error {
	var trailer metadata.MD
	ctx = metadata.AppendToOutgoingContext(ctx, "x-request-id", "go-1")
	if _, err := c.digits().Predict(ctx, &pb.PredictRequest{Pixels: c.image(0)}, grpc.Trailer(&trailer)); err != nil {
		return err
	}
	if got := trailer.Get("x-request-id"); !slices.Equal(got, []string{"go-1"}) {
		return fmt.Errorf("got x-request-id %q in the trailing metadata; want go-1", got)
	}
	return nil
}

func (c *checks) tooLarge(ctx context.Context) error {
	_, err := c.digits().Predict(ctx, &pb.PredictRequest{Pixels: make([]byte, 5000*imageSize)})
	return expect(err, codes.ResourceExhausted)
}

func (c *checks) health(ctx context.Context) error {
	health := grpc_health_v1.NewHealthClient(c.plain)
	for _, service := range []string{"", "digits.v1.DigitService"} {
		reply, err := health.Check(ctx, &grpc_health_v1.HealthCheckRequest{Service: service})
		if err != nil {
			return err
		}
		if reply.Status != grpc_health_v1.HealthCheckResponse_SERVING {
			return fmt.Errorf("service %q: got %v; want SERVING", service, reply.Status)
		}
	}
	return nil
}

func (c *checks) reflectionV1(ctx context.Context) error {
	stream, err := grpc_reflection_v1.NewServerReflectionClient(c.plain).ServerReflectionInfo(ctx)
	if err != nil {
		return err
	}
	request := &grpc_reflection_v1.ServerReflectionRequest{
		MessageRequest: &grpc_reflection_v1.ServerReflectionRequest_ListServices{},
	}
	if err := stream.Send(request); err != nil {
		return err
	}
	reply, err := stream.Recv()
	if err != nil {
		return err
	}
	return expectDigitService(reply.GetListServicesResponse().GetService())
}

func (c *checks) reflectionV1Alpha(ctx context.Context) error {
	stream, err := grpc_reflection_v1alpha.NewServerReflectionClient(c.plain).ServerReflectionInfo(ctx)
	if err != nil {
		return err
	}
	request := &grpc_reflection_v1alpha.ServerReflectionRequest{
		MessageRequest: &grpc_reflection_v1alpha.ServerReflectionRequest_ListServices{},
	}
	if err := stream.Send(request); err != nil {
		return err
	}
	reply, err := stream.Recv()
	if err != nil {
		return err
	}
	return expectDigitService(reply.GetListServicesResponse().GetService())
}

func (c *checks) tls(ctx context.Context) error {
	return c.predictWithToken(ctx, c.token)
}

func (c *checks) wrongToken(ctx context.Context) error {
	return expect(c.predictWithToken(ctx, "wrong"), codes.Unauthenticated)
}

func (c *checks) predictWithToken(ctx context.Context, token string) error {
	ctx = metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+token)
	_, err := pb.NewDigitServiceClient(c.secure).Predict(ctx, &pb.PredictRequest{Pixels: c.image(0)})
	return err
}

func expect(err error, want codes.Code) error {
	if got := status.Code(err); got != want {
		return fmt.Errorf("got %v (%v); want %v", got, err, want)
	}
	return nil
}

func expectDigitService[S interface{ GetName() string }](services []S) error {
	if !slices.ContainsFunc(services, func(s S) bool { return s.GetName() == "digits.v1.DigitService" }) {
		return fmt.Errorf("got services %v; want digits.v1.DigitService among them", services)
	}
	return nil
}
