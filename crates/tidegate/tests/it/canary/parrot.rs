//! Servers that repeat everything they are told.

use super::TOKEN;
use std::net::SocketAddr;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
};

/// Repeats everything it was sent, in the form its path asks for: `/STATUS/…`, `/cut/…`, `/token`.
pub(super) async fn parrot() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut asked = Vec::new();
                let mut piece = [0; 4096];
                loop {
                    let Ok(read) = stream.read(&mut piece).await else { return };
                    asked.extend_from_slice(&piece[..read]);
                    if read == 0 || is_whole(&asked) {
                        break;
                    }
                }
                let said = String::from_utf8_lossy(&asked).into_owned();
                let answer = repeated(&said);
                drop(stream.write_all(answer.as_bytes()).await);
                drop(stream.shutdown().await);
            });
        }
    });
    address
}

/// A database that asks for the password, and repeats it with all else it was told.
pub(super) async fn parrot_database() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut said = [0; 4096];
                let Ok(begun) = stream.read(&mut said).await else { return };
                // Send the password in clear text.
                drop(stream.write_all(b"R\0\0\0\x08\0\0\0\x03").await);
                let Ok(told) = stream.read(&mut said[begun..]).await else { return };
                let told = String::from_utf8_lossy(&said[..begun + told]).replace('\0', " ");
                let words = format!("SFATAL\0C28P01\0Mwho is {told}\0D{told}\0\0");
                let length = u32::try_from(words.len() + 4).unwrap().to_be_bytes();
                let answer = [&b"E"[..], &length, words.as_bytes()].concat();
                drop(stream.write_all(&answer).await);
            });
        }
    });
    address
}

fn is_whole(asked: &[u8]) -> bool {
    let text = String::from_utf8_lossy(asked).to_lowercase();
    let Some((head, body)) = text.split_once("\r\n\r\n") else { return false };
    let length = head.lines().find_map(|line| line.strip_prefix("content-length:"));
    length.is_none_or(|length| body.len() >= length.trim().parse().unwrap_or(0))
}

fn repeated(said: &str) -> String {
    let way = said.split('/').nth(1).unwrap_or_default();
    let way = way.split(' ').next().unwrap_or_default();
    let echo = said.replace(['"', '\\'], "'").replace(['\r', '\n'], " ");
    let body = match way {
        "token" => {
            format!(r#"{{"access_token":"{TOKEN}","token_type":"Bearer","expires_in":3600}}"#)
        }
        "refuse" => format!(r#"{{"error":"invalid_client","error_description":"{echo}"}}"#),
        "cut" => format!(r#"{{"id":"{echo}","object":"#),
        "html" => format!("<html>{echo}"),
        _ => format!(
            r#"{{"error":{{"message":"Incorrect API key provided: {echo}","type":"{echo}","param":"{echo}","code":"{echo}"}}}}"#
        ),
    };
    let status = match way {
        "token" | "cut" | "html" => 200,
        "refuse" => 401,
        status => status.parse().unwrap_or(500),
    };
    let echo = echo.chars().filter(char::is_ascii_graphic).take(1500).collect::<String>();
    format!(
        "HTTP/1.1 {status} {echo}\r\ncontent-type: application/json\r\nx-echo: {echo}\r\n\
         www-authenticate: {echo}\r\nretry-after: {echo}\r\nx-request-id: {echo}\r\n\
         content-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    )
}
