package examples;

import com.google.protobuf.ByteString;
import digits.v1.DigitServiceGrpc;
import digits.v1.DigitServiceGrpc.DigitServiceBlockingStub;
import digits.v1.DigitServiceGrpc.DigitServiceBlockingV2Stub;
import digits.v1.Digits.PredictRequest;
import digits.v1.Digits.PredictResponse;
import io.grpc.Grpc;
import io.grpc.InsecureChannelCredentials;
import io.grpc.ManagedChannel;
import io.grpc.Metadata;
import io.grpc.Status;
import io.grpc.StatusException;
import io.grpc.StatusRuntimeException;
import io.grpc.TlsChannelCredentials;
import io.grpc.health.v1.HealthCheckRequest;
import io.grpc.health.v1.HealthCheckResponse.ServingStatus;
import io.grpc.health.v1.HealthGrpc;
import io.grpc.stub.BlockingClientCall;
import io.grpc.stub.MetadataUtils;
import java.io.File;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Objects;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicReference;

/**
 * Tries what a client relies on, against two servers, and prints a line for each behaviour: one server in plain text
 * without tokens, one with TLS and tokens.
 *
 * <pre>java -cp "target/classes:target/lib/*" examples.Check ADDRESS SECURE_ADDRESS CA_FILE TOKEN</pre>
 */
public final class Check {
  private static final int IMAGE_SIZE = 28 * 28;
  private static final int TIMEOUT = 30; // seconds
  private static final String SERVICE = "digits.v1.DigitService";
  private static final Metadata.Key<String> REQUEST_ID =
      Metadata.Key.of("x-request-id", Metadata.ASCII_STRING_MARSHALLER);
  private static final Metadata.Key<String> AUTHORIZATION =
      Metadata.Key.of("authorization", Metadata.ASCII_STRING_MARSHALLER);

  private final ManagedChannel plain;
  private final ManagedChannel secure;
  private final String token;
  private final ByteString samples; // 10 of each digit, from 0 to 9

  /** One behaviour: returns where it holds, and throws where it does not. */
  private interface Behaviour {
    void check() throws Exception;
  }

  private Check(String address, String secureAddress, String caFile, String token) throws IOException {
    this.plain = Grpc.newChannelBuilder(address, InsecureChannelCredentials.create()).build();
    this.secure = Grpc.newChannelBuilder(
            secureAddress, TlsChannelCredentials.newBuilder().trustManager(new File(caFile)).build())
        .build();
    this.token = token;
    byte[] file = Files.readAllBytes(Path.of("../../samples/digits-100-images-idx3-ubyte"));
    this.samples = ByteString.copyFrom(file).substring(16);
  }

  public static void main(String[] arguments) throws Exception {
    if (arguments.length != 4) {
      System.err.println("usage: Check ADDRESS SECURE_ADDRESS CA_FILE TOKEN");
      System.exit(2);
    }
    Check check = new Check(arguments[0], arguments[1], arguments[2], arguments[3]);
    int failed = 0;
    for (Map.Entry<String, Behaviour> behaviour : check.behaviours().entrySet()) {
      try {
        behaviour.getValue().check();
        System.out.println(behaviour.getKey() + ": ok");
      } catch (Exception e) {
        failed++;
        System.out.println(behaviour.getKey() + ": FAILED: " + e);
      }
    }
    check.plain.shutdownNow();
    check.secure.shutdownNow();
    System.exit(failed == 0 ? 0 : 1);
  }

  private Map<String, Behaviour> behaviours() {
    Map<String, Behaviour> behaviours = new LinkedHashMap<>();
    behaviours.put("unary", this::unary);
    behaviours.put("stream", this::stream);
    behaviours.put("deadline", this::deadline);
    behaviours.put("cancel", this::cancel);
    behaviours.put("gzip", this::gzip);
    behaviours.put("metadata", this::metadata);
    behaviours.put("too large", this::tooLarge);
    behaviours.put("health", this::health);
    behaviours.put("reflection v1", this::reflectionV1);
    behaviours.put("reflection v1alpha", this::reflectionV1Alpha);
    behaviours.put("tls", this::tls);
    behaviours.put("wrong token", this::wrongToken);
    return behaviours;
  }

  private void unary() {
    ByteString pixels = image(0).concat(image(1)).concat(image(2));
    PredictResponse reply = digits().predict(request(pixels));
    expect(List.of(0, 1, 2), reply.getDigitsList());
    expect(30, reply.getActivationsCount());
  }

  /** Sends three messages and expects a reply to each, in order. */
  private void stream() throws Exception {
    BlockingClientCall<PredictRequest, PredictResponse> call = streams(TIMEOUT * 1000).predictStream();
    for (int digit = 0; digit < 3; digit++) {
      call.write(request(image(digit)));
    }
    call.halfClose();
    for (int digit = 0; digit < 3; digit++) {
      expect(List.of(digit), call.read().getDigitsList());
    }
    expect(null, call.read());
  }

  /** Leaves a stream idle until its deadline ends it. */
  private void deadline() throws Exception {
    try {
      PredictResponse reply = streams(200).predictStream().read();
      throw new IllegalStateException("got " + reply + "; want DEADLINE_EXCEEDED");
    } catch (StatusException e) {
      expect(Status.Code.DEADLINE_EXCEEDED, e.getStatus().getCode());
    }
    unary();
  }

  /** Gives a stream up after its first reply; the connection serves on. */
  private void cancel() throws Exception {
    BlockingClientCall<PredictRequest, PredictResponse> call = streams(TIMEOUT * 1000).predictStream();
    call.write(request(image(0)));
    expect(List.of(0), call.read().getDigitsList());
    call.cancel("not needed any more", null);
    try {
      PredictResponse reply = call.read();
      throw new IllegalStateException("got " + reply + "; want CANCELLED");
    } catch (StatusException e) {
      expect(Status.Code.CANCELLED, e.getStatus().getCode());
    }
    unary();
  }

  private void gzip() {
    PredictResponse reply = digits().withCompression("gzip").predict(request(image(2)));
    expect(List.of(2), reply.getDigitsList());
  }

  /** Sends a request id and expects it in the trailing metadata. */
  private void metadata() {
    AtomicReference<Metadata> headers = new AtomicReference<>();
    AtomicReference<Metadata> trailers = new AtomicReference<>();
    digits()
        .withInterceptors(
            MetadataUtils.newAttachHeadersInterceptor(metadata(REQUEST_ID, "java-1")),
            MetadataUtils.newCaptureMetadataInterceptor(headers, trailers))
        .predict(request(image(0)));
    expect("java-1", trailers.get().get(REQUEST_ID));
  }

  private void tooLarge() {
    PredictRequest request = request(ByteString.copyFrom(new byte[5000 * IMAGE_SIZE]));
    expectStatus(Status.Code.RESOURCE_EXHAUSTED, () -> digits().predict(request));
  }

  private void health() {
    for (String service : List.of("", SERVICE)) {
      HealthCheckRequest request = HealthCheckRequest.newBuilder().setService(service).build();
      ServingStatus status = HealthGrpc.newBlockingStub(plain)
          .withDeadlineAfter(TIMEOUT, TimeUnit.SECONDS)
          .check(request)
          .getStatus();
      expect(ServingStatus.SERVING, status);
    }
  }

  private void reflectionV1() throws Exception {
    var call = io.grpc.reflection.v1.ServerReflectionGrpc.newBlockingV2Stub(plain)
        .withDeadlineAfter(TIMEOUT, TimeUnit.SECONDS)
        .serverReflectionInfo();
    call.write(io.grpc.reflection.v1.ServerReflectionRequest.newBuilder().setListServices("").build());
    call.halfClose();
    boolean listed = call.read().getListServicesResponse().getServiceList().stream()
        .anyMatch(service -> service.getName().equals(SERVICE));
    expect(true, listed);
  }

  private void reflectionV1Alpha() throws Exception {
    var call = io.grpc.reflection.v1alpha.ServerReflectionGrpc.newBlockingV2Stub(plain)
        .withDeadlineAfter(TIMEOUT, TimeUnit.SECONDS)
        .serverReflectionInfo();
    call.write(io.grpc.reflection.v1alpha.ServerReflectionRequest.newBuilder().setListServices("").build());
    call.halfClose();
    boolean listed = call.read().getListServicesResponse().getServiceList().stream()
        .anyMatch(service -> service.getName().equals(SERVICE));
    expect(true, listed);
  }

  private void tls() {
    expect(List.of(0), predictWithToken(token).getDigitsList());
  }

  private void wrongToken() {
    expectStatus(Status.Code.UNAUTHENTICATED, () -> predictWithToken("wrong"));
  }

  private PredictResponse predictWithToken(String token) {
    Metadata metadata = metadata(AUTHORIZATION, "Bearer " + token);
    return DigitServiceGrpc.newBlockingStub(secure)
        .withDeadlineAfter(TIMEOUT, TimeUnit.SECONDS)
        .withInterceptors(MetadataUtils.newAttachHeadersInterceptor(metadata))
        .predict(request(image(0)));
  }

  private DigitServiceBlockingStub digits() {
    return DigitServiceGrpc.newBlockingStub(plain).withDeadlineAfter(TIMEOUT, TimeUnit.SECONDS);
  }

  private DigitServiceBlockingV2Stub streams(int milliseconds) {
    return DigitServiceGrpc.newBlockingV2Stub(plain).withDeadlineAfter(milliseconds, TimeUnit.MILLISECONDS);
  }

  /** The first sample of a digit. */
  private ByteString image(int digit) {
    return samples.substring(digit * 10 * IMAGE_SIZE, (digit * 10 + 1) * IMAGE_SIZE);
  }

  private static PredictRequest request(ByteString pixels) {
    return PredictRequest.newBuilder().setPixels(pixels).build();
  }

  private static Metadata metadata(Metadata.Key<String> key, String value) {
    Metadata metadata = new Metadata();
    metadata.put(key, value);
    return metadata;
  }

  private static void expect(Object want, Object got) {
    if (!Objects.equals(want, got)) {
      throw new IllegalStateException("got " + got + "; want " + want);
    }
  }

  private static void expectStatus(Status.Code want, Behaviour call) {
    try {
      call.check();
    } catch (StatusRuntimeException e) {
      expect(want, e.getStatus().getCode());
      return;
    } catch (Exception e) {
      throw new IllegalStateException(e);
    }
    throw new IllegalStateException("got OK; want " + want);
  }
}
