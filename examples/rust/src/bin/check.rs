//! Checks the behaviours that clients rely on, with two servers, and prints a line for each behaviour. One server is in
//! plain text without tokens, the other has TLS and tokens.
//!
//! ```sh
//! cargo run --bin check ADDRESS SECURE_ADDRESS CA_FILE TOKEN
//! ```

use std::{env, fmt::Debug, fs, future::Future, process::exit, time::Duration};

use digitserve_examples::{digit_service_client::DigitServiceClient, PredictRequest, PredictResponse};
use tokio_stream::{iter, once, pending, StreamExt};
use tonic::codec::CompressionEncoding;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};
use tonic::{Code, Request, Status};
use tonic_health::pb::{health_check_response::ServingStatus, health_client::HealthClient, HealthCheckRequest};
use tonic_reflection::pb::{v1, v1alpha};

const IMAGE_SIZE: usize = 28 * 28;
const TIMEOUT: Duration = Duration::from_secs(30);
const SERVICE: &str = "digits.v1.DigitService";

type Error = Box<dyn std::error::Error>;
type Checked = Result<(), Error>;

/// The channels to both servers, and the sample digits: 10 of each, from 0 to 9.
struct Checks {
    plain: Channel,
    secure: Channel,
    token: String,
    samples: Vec<u8>,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Checked {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [address, secure_address, ca_file, token] = arguments.as_slice() else {
        eprintln!("usage: check ADDRESS SECURE_ADDRESS CA_FILE TOKEN");
        exit(2);
    };
    let tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(fs::read(ca_file)?));
    let checks = Checks {
        plain: Endpoint::from_shared(format!("http://{address}"))?.connect().await?,
        secure: Endpoint::from_shared(format!("https://{secure_address}"))?.tls_config(tls)?.connect().await?,
        token: token.clone(),
        samples: fs::read("../../samples/digits-100-images-idx3-ubyte")?.split_off(16),
    };
    let all_hold = [
        report("unary", checks.unary()).await,
        report("stream", checks.stream()).await,
        report("deadline", checks.deadline()).await,
        report("cancel", checks.cancel()).await,
        report("gzip", checks.gzip()).await,
        report("metadata", checks.metadata()).await,
        report("too large", checks.too_large()).await,
        report("health", checks.health()).await,
        report("reflection v1", checks.reflection_v1()).await,
        report("reflection v1alpha", checks.reflection_v1alpha()).await,
        report("tls", checks.tls()).await,
        report("wrong token", checks.wrong_token()).await,
    ];
    exit(i32::from(all_hold.contains(&false)))
}

/// Prints the result of a check; returns whether the behaviour holds.
async fn report(behaviour: &str, check: impl Future<Output = Checked>) -> bool {
    match check.await {
        Ok(()) => println!("{behaviour}: ok"),
        Err(error) => {
            println!("{behaviour}: FAILED: {error}");
            return false;
        }
    }
    true
}

impl Checks {
    /// A request with the first sample of each of these digits.
    fn request(&self, digits: &[usize]) -> PredictRequest {
        let images = digits.iter().flat_map(|digit| &self.samples[digit * 10 * IMAGE_SIZE..][..IMAGE_SIZE]);
        predict_request(images.copied().collect())
    }

    fn digits(&self) -> DigitServiceClient<Channel> {
        DigitServiceClient::new(self.plain.clone())
    }

    async fn unary(&self) -> Checked {
        let reply = self.digits().predict(with_deadline(self.request(&[0, 1, 2]))).await?.into_inner();
        expect(&reply.digits, &vec![0, 1, 2])?;
        expect(&reply.activations.len(), &30)
    }

    /// Sends three messages and expects a reply to each, in order.
    async fn stream(&self) -> Checked {
        let requests = iter([0, 1, 2].map(|digit| self.request(&[digit])));
        let replies = self.digits().predict_stream(with_deadline(requests)).await?.into_inner();
        let replies: Vec<PredictResponse> = replies.collect::<Result<_, _>>().await?;
        let digits: Vec<_> = replies.into_iter().map(|reply| reply.digits).collect();
        expect(&digits, &vec![vec![0], vec![1], vec![2]])
    }

    /// Leaves a stream idle until its deadline ends it.
    async fn deadline(&self) -> Checked {
        let mut request = Request::new(pending());
        request.set_timeout(Duration::from_millis(200));
        let ended = match self.digits().predict_stream(request).await {
            Ok(replies) => replies.into_inner().message().await.err(),
            Err(status) => Some(status),
        };
        // The server ends the call with DEADLINE_EXCEEDED; tonic's own timer may be first, and calls it CANCELLED.
        let code = ended.map(|status| status.code());
        if !matches!(code, Some(Code::DeadlineExceeded | Code::Cancelled)) {
            return Err(format!("got {code:?}; want DeadlineExceeded").into());
        }
        self.unary().await
    }

    /// Drops a stream after its first reply, which cancels it; the connection serves on.
    async fn cancel(&self) -> Checked {
        let requests = once(self.request(&[0])).chain(pending());
        let mut replies = self.digits().predict_stream(with_deadline(requests)).await?.into_inner();
        expect(&replies.message().await?.map(|reply| reply.digits), &Some(vec![0]))?;
        drop(replies);
        self.unary().await
    }

    async fn gzip(&self) -> Checked {
        let client = self.digits().send_compressed(CompressionEncoding::Gzip);
        let mut client = client.accept_compressed(CompressionEncoding::Gzip);
        let reply = client.predict(with_deadline(self.request(&[2]))).await?.into_inner();
        expect(&reply.digits, &vec![2])
    }

    /// Sends a request id and expects it in the trailing metadata.
    async fn metadata(&self) -> Checked {
        let mut request = with_deadline(self.request(&[0]));
        request.metadata_mut().insert("x-request-id", "rust-1".parse()?);
        let reply = self.digits().predict(request).await?;
        let id = reply.metadata().get("x-request-id").map(|id| id.to_str());
        expect(&id.transpose()?, &Some("rust-1"))
    }

    async fn too_large(&self) -> Checked {
        let request = with_deadline(predict_request(vec![0; 5000 * IMAGE_SIZE]));
        expect_status(self.digits().predict(request).await, Code::ResourceExhausted)
    }

    async fn health(&self) -> Checked {
        let mut health = HealthClient::new(self.plain.clone());
        for service in ["", SERVICE] {
            let request = with_deadline(HealthCheckRequest { service: service.into() });
            let reply = health.check(request).await?.into_inner();
            expect(&reply.status(), &ServingStatus::Serving)?;
        }
        Ok(())
    }

    async fn reflection_v1(&self) -> Checked {
        use v1::server_reflection_request::MessageRequest::ListServices;
        use v1::server_reflection_response::MessageResponse::ListServicesResponse;
        let request =
            v1::ServerReflectionRequest { message_request: Some(ListServices(String::new())), ..Default::default() };
        let mut client = v1::server_reflection_client::ServerReflectionClient::new(self.plain.clone());
        let mut replies = client.server_reflection_info(with_deadline(once(request))).await?.into_inner();
        let reply = replies.message().await?.and_then(|reply| reply.message_response);
        match reply {
            Some(ListServicesResponse(list)) if list.service.iter().any(|service| service.name == SERVICE) => Ok(()),
            other => Err(format!("got {other:?}; want {SERVICE} among the services").into()),
        }
    }

    async fn reflection_v1alpha(&self) -> Checked {
        use v1alpha::server_reflection_request::MessageRequest::ListServices;
        use v1alpha::server_reflection_response::MessageResponse::ListServicesResponse;
        let request = v1alpha::ServerReflectionRequest {
            message_request: Some(ListServices(String::new())),
            ..Default::default()
        };
        let mut client = v1alpha::server_reflection_client::ServerReflectionClient::new(self.plain.clone());
        let mut replies = client.server_reflection_info(with_deadline(once(request))).await?.into_inner();
        let reply = replies.message().await?.and_then(|reply| reply.message_response);
        match reply {
            Some(ListServicesResponse(list)) if list.service.iter().any(|service| service.name == SERVICE) => Ok(()),
            other => Err(format!("got {other:?}; want {SERVICE} among the services").into()),
        }
    }

    async fn tls(&self) -> Checked {
        let reply = self.predict_with_token(&self.token).await?;
        expect(&reply.digits, &vec![0])
    }

    async fn wrong_token(&self) -> Checked {
        expect_status(self.predict_with_token("wrong").await, Code::Unauthenticated)
    }

    async fn predict_with_token(&self, token: &str) -> Result<PredictResponse, Status> {
        let mut request = with_deadline(self.request(&[0]));
        let header = format!("Bearer {token}").parse().expect("a token is visible ASCII");
        request.metadata_mut().insert("authorization", header);
        let mut client = DigitServiceClient::new(self.secure.clone());
        Ok(client.predict(request).await?.into_inner())
    }
}

fn predict_request(pixels: Vec<u8>) -> PredictRequest {
    PredictRequest { pixels, ..Default::default() }
}

fn with_deadline<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(TIMEOUT);
    request
}

fn expect<T: PartialEq + Debug>(got: &T, want: &T) -> Checked {
    if got == want {
        return Ok(());
    }
    Err(format!("got {got:?}; want {want:?}").into())
}

fn expect_status<T>(result: Result<T, Status>, want: Code) -> Checked {
    match result {
        Ok(_) => Err(format!("got OK; want {want:?}").into()),
        Err(status) if status.code() == want => Ok(()),
        Err(status) => Err(format!("got {:?} ({}); want {want:?}", status.code(), status.message()).into()),
    }
}
