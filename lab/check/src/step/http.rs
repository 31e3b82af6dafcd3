//! As much of HTTP/1.1 (RFC 9112) as a check needs: one GET, one answer, whole or chunked. Pure: bytes in, bytes out.

use super::text::HttpUrl;

/// The request, asking the server to close afterwards so that the end of the answer is the end of the stream.
pub(super) fn request(url: &HttpUrl) -> Vec<u8> {
    format!(
        "GET {} HTTP/1.1\r\nHost: {}\r\nUser-Agent: patchlab-check\r\nAccept: */*\r\nConnection: close\r\n\r\n",
        url.path(),
        url.authority()
    )
    .into_bytes()
}

/// An answer, taken apart.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Answer {
    pub status: u16,
    /// Status line, for people.
    pub line: String,
    /// Names in lower case, in the order they came.
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    pub end: End,
}

/// Whether the body came whole.
#[derive(Debug, PartialEq, Eq, Clone, Copy)]
pub(super) enum End {
    /// As long as the answer said, or until the server closed.
    Whole,
    /// It ended before.
    Cut,
}

/// Takes an answer apart; the error says why it is none.
pub(super) fn answer(bytes: &[u8]) -> Result<Answer, String> {
    let head_end = find(bytes, b"\r\n\r\n").ok_or_else(|| match bytes.len() {
        0 => "the connection was closed without an answer".to_owned(),
        _ => format!("no HTTP answer: {:?}", String::from_utf8_lossy(&bytes[..bytes.len().min(80)])),
    })?;
    let head = String::from_utf8_lossy(&bytes[..head_end]);
    let mut lines = head.split("\r\n");
    let line = lines.next().unwrap_or_default().to_owned();
    let status = line
        .strip_prefix("HTTP/1.")
        .and_then(|rest| rest.split_whitespace().nth(1))
        .and_then(|status| status.parse().ok())
        .ok_or_else(|| format!("no HTTP status line: {:?}", line.chars().take(80).collect::<String>()))?;
    let headers: Vec<(String, String)> = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.trim().to_ascii_lowercase(), value.trim().to_owned()))
        .collect();
    let rest = &bytes[head_end + 4..];
    if (100..200).contains(&status) && status != 101 {
        return answer(rest);
    }
    let header = |name: &str| headers.iter().find(|(found, _)| found == name).map(|(_, value)| value.as_str());
    let (body, end) = if header("transfer-encoding").is_some_and(|value| value.to_ascii_lowercase().contains("chunked"))
    {
        unchunk(rest)?
    } else {
        match header("content-length").map(str::parse::<usize>) {
            Some(Ok(length)) if rest.len() < length => (rest.to_vec(), End::Cut),
            Some(Ok(length)) => (rest[..length].to_vec(), End::Whole),
            Some(Err(_)) => return Err("the answer's Content-Length is no number".into()),
            None => (rest.to_vec(), End::Whole),
        }
    };
    Ok(Answer { status, line, headers, body, end })
}

fn unchunk(mut rest: &[u8]) -> Result<(Vec<u8>, End), String> {
    let mut body = Vec::new();
    loop {
        let Some(line_end) = find(rest, b"\r\n") else { return Ok((body, End::Cut)) };
        let line = String::from_utf8_lossy(&rest[..line_end]);
        let size = line.split(';').next().unwrap_or_default().trim();
        let size =
            usize::from_str_radix(size, 16).map_err(|_| format!("the answer's chunk size {size:?} is no number"))?;
        rest = &rest[line_end + 2..];
        if size == 0 {
            return Ok((body, End::Whole));
        }
        if rest.len() < size {
            body.extend_from_slice(rest);
            return Ok((body, End::Cut));
        }
        body.extend_from_slice(&rest[..size]);
        rest = rest[size..].strip_prefix(b"\r\n").unwrap_or(&[]);
    }
}

fn find(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    bytes.windows(wanted.len()).position(|window| window == wanted)
}
