// Sends the first of the sample digits, a 0, and prints the server's answer.
package main

import (
	"cmp"
	"context"
	"fmt"
	"log"
	"os"
	"time"

	"digitserve/examples/go/pb"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

func main() {
	samples, err := os.ReadFile("../../samples/digits-100-images-idx3-ubyte")
	if err != nil {
		log.Fatal(err)
	}
	image := samples[16:800] // 16 bytes of header, then 28x28 bytes an image: 0 is background, 255 is ink

	address := cmp.Or(os.Getenv("DIGITS_ADDRESS"), "localhost:50051")
	connection, err := grpc.NewClient(address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		log.Fatal(err)
	}
	defer connection.Close()

	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	reply, err := pb.NewDigitServiceClient(connection).Predict(ctx, &pb.PredictRequest{Pixels: image})
	if err != nil {
		log.Fatal(err)
	}
	digit := reply.Digits[0]
	fmt.Printf("digit %d, activation %.2f\n", digit, reply.Activations[digit])
}
