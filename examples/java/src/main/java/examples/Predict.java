package examples;

import com.google.protobuf.ByteString;
import digits.v1.DigitServiceGrpc;
import digits.v1.Digits.PredictRequest;
import digits.v1.Digits.PredictResponse;
import io.grpc.Grpc;
import io.grpc.InsecureChannelCredentials;
import io.grpc.ManagedChannel;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Locale;
import java.util.concurrent.TimeUnit;

/** Sends the first of the sample digits, a 0, and prints what the server reads in it. */
public final class Predict {
  public static void main(String[] arguments) throws Exception {
    byte[] samples = Files.readAllBytes(Path.of("../../samples/digits-100-images-idx3-ubyte"));
    // 16 bytes of header, then 28x28 bytes an image: 0 is background, 255 is ink
    ByteString image = ByteString.copyFrom(samples, 16, 784);

    String address = System.getenv().getOrDefault("DIGITS_ADDRESS", "localhost:50051");
    ManagedChannel channel = Grpc.newChannelBuilder(address, InsecureChannelCredentials.create()).build();
    try {
      PredictResponse reply = DigitServiceGrpc.newBlockingStub(channel)
          .withDeadlineAfter(5, TimeUnit.SECONDS)
          .predict(PredictRequest.newBuilder().setPixels(image).build());
      int digit = reply.getDigits(0);
      System.out.printf(Locale.ROOT, "digit %d, activation %.2f%n", digit, reply.getActivations(digit));
    } finally {
      channel.shutdownNow().awaitTermination(5, TimeUnit.SECONDS);
    }
  }
}
