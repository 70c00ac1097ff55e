//! The same server over TCP and over HTTP/2.

use crate::*;
use hyper::client::conn::http2;
use hyper_util::rt::TokioExecutor;
use tidegate_sim::{Outcome, Phase};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::oneshot,
};

const ASK: &[u8] = b"POST /v1/embeddings HTTP/1.1\r\nhost: sim\r\ncontent-length: 25\r\n\r\n\
                     {\"model\":\"m\",\"input\":\"x\"}";

#[tokio::test]
async fn over_tcp_until_told_to_stop() {
    let sim = Sim::new(Options { ttft: fixed(0), ..options() });
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (stop, stopped) = oneshot::channel::<()>();
    let served = tokio::spawn(Arc::clone(&sim).serve(listener, async { drop(stopped.await) }));
    let mut socket = TcpStream::connect(address).await.unwrap();
    socket.write_all(ASK).await.unwrap();
    let mut head = [0; 15];
    socket.read_exact(&mut head).await.unwrap();
    assert_eq!(&head, b"HTTP/1.1 200 OK");

    sim.set_faults(Faults { reset_rate: 1.0, ..Faults::default() });
    let mut socket = TcpStream::connect(address).await.unwrap();
    socket.write_all(ASK).await.unwrap();
    let error = socket.read(&mut [0; 1]).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "a RST, not a FIN");

    stop.send(()).unwrap();
    served.await.unwrap();
    assert!(TcpStream::connect(address).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn many_streams_of_one_http2_connection() {
    let sim = Sim::new(options());
    let io = TokioIo::new(sim.connect());
    let (mut sender, connection) = http2::handshake(TokioExecutor::new(), io).await.unwrap();
    let connection = tokio::spawn(connection);
    let mut uri = request("/v1/chat/completions", &streamed(chat("the tide", 5)));
    *uri.uri_mut() = "http://sim/v1/chat/completions".parse().unwrap();
    let one = finish(sender.send_request(uri.clone()).await.unwrap(), Instant::now()).await;
    assert_eq!(one.events().last(), Some(&"[DONE]"));

    let dropped = sender.send_request(uri.clone()).await.unwrap();
    tokio::time::sleep(Duration::from_millis(115)).await;
    drop(dropped);
    tokio::time::sleep(Duration::from_millis(1)).await;
    let entry = sim.ledger().pop().unwrap();
    assert_eq!((entry.outcome, entry.phase), (Outcome::Cancelled, Phase::Answering));

    sim.set_faults(Faults { reset_rate: 1.0, ..Faults::default() });
    assert!(sender.send_request(uri.clone()).await.is_err());
    sim.set_faults(Faults::default());
    assert_eq!(sender.send_request(uri).await.unwrap().status(), 200, "the connection goes on");
    connection.abort();
}
