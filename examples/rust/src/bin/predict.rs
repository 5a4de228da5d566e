//! Sends the first of the sample digits, a 0, and prints the server's answer.

use std::{env, error::Error, fs, time::Duration};

use digitserve_examples::{digit_service_client::DigitServiceClient, PredictRequest};
use tonic::{transport::Endpoint, Request};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let samples = fs::read("../../samples/digits-100-images-idx3-ubyte")?;
    let image = samples[16..800].to_vec(); // 16 bytes of header, then 28x28 bytes an image: 0 is background, 255 is ink

    let address = env::var("DIGITS_ADDRESS").unwrap_or("localhost:50051".into());
    let channel = Endpoint::from_shared(format!("http://{address}"))?.connect().await?;
    let mut client = DigitServiceClient::new(channel);

    let mut request = Request::new(PredictRequest { pixels: image, ..Default::default() });
    request.set_timeout(Duration::from_secs(5));
    let reply = client.predict(request).await?.into_inner();
    let digit = reply.digits[0];
    println!("digit {digit}, activation {:.2}", reply.activations[digit as usize]);
    Ok(())
}
