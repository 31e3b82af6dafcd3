//! A place near a host that does what a test tells it, and remembers what it was asked for. What it says is written byte by byte here,
//! because no HTTP server would break its own answers.

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

/// How it answers.
#[derive(Debug, Clone, Copy)]
pub enum Manner {
    /// As it should.
    Well,
    /// It has nothing.
    Empty,
    /// Nothing at all.
    Silent,
    /// With one byte changed in everything of this kind.
    Altering(&'static str),
    /// Documents with another signature; what is signed is as it was.
    Unsigning,
    /// Well, but of larger contents it sends so many bytes and hangs up.
    Breaking(usize),
    /// A byte at a time, four in a second, as long as somebody listens.
    Dripping,
    /// Package files with one byte changed, of which it sends so many and hangs up.
    AlteringAndBreaking(usize),
}

/// A request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    /// `documents` or `artifacts`.
    pub kind: String,
    /// From which byte on.
    pub from: usize,
}

pub type Log = Arc<Mutex<Vec<Asked>>>;

/// The place.
pub struct Member {
    listener: TcpListener,
    asked: Log,
}

impl Member {
    pub fn new() -> Self {
        Self { listener: TcpListener::bind("127.0.0.1:0").unwrap(), asked: Log::default() }
    }

    pub fn uri(&self) -> String {
        format!("http://{}/cache", self.listener.local_addr().unwrap())
    }

    /// Serves what is in a folder, until the process ends.
    pub fn serve(&self, www: &Path, manner: Manner) {
        let (listener, asked, www) = (self.listener.try_clone().unwrap(), Arc::clone(&self.asked), www.to_owned());
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (asked, www) = (Arc::clone(&asked), www.clone());
                std::thread::spawn(move || answer(stream.unwrap(), &www, manner, &asked));
            }
        });
    }

    /// Requests for one kind of thing: from which byte on each was.
    pub fn asked(&self, kind: &str) -> Vec<usize> {
        of_kind(&self.asked, kind)
    }
}

pub fn of_kind(log: &Log, kind: &str) -> Vec<usize> {
    log.lock().unwrap().iter().filter(|asked| asked.kind == kind).map(|asked| asked.from).collect()
}

/// The first byte that a request's `Range` header asks for.
pub fn first_byte(range: Option<&str>) -> usize {
    let first = range.and_then(|range| range.trim().strip_prefix("bytes=")?.strip_suffix('-'));
    first.map_or(0, |first| first.parse().unwrap())
}

fn answer(mut stream: TcpStream, www: &Path, manner: Manner, asked: &Log) {
    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines().map_while(Result::ok);
    let Some(request) = lines.next() else { return };
    let mut range = None;
    for line in lines.take_while(|line| !line.is_empty()) {
        if let Some((name, value)) = line.split_once(':')
            && name.eq_ignore_ascii_case("range")
        {
            range = Some(value.to_owned());
        }
    }
    let path: PathBuf = request.split(' ').nth(1).unwrap().trim_start_matches("/cache/").into();
    let kind = path.parent().unwrap().to_str().unwrap().to_owned();
    let from = first_byte(range.as_deref());
    asked.lock().unwrap().push(Asked { kind: kind.clone(), from });
    let content = fs::read(www.join(&path)).ok().filter(|_| !matches!(manner, Manner::Empty));
    let Some(mut content) = content else {
        let _ = stream.write_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
        return;
    };
    let altered = match manner {
        Manner::Altering(what) => kind == what,
        Manner::AlteringAndBreaking(_) => kind == "artifacts",
        _ => false,
    };
    if altered {
        content[100] ^= 1;
    }
    if matches!(manner, Manner::Unsigning) && kind == "documents" {
        let text = String::from_utf8(content).unwrap();
        let place = text.find("\"sig\":\"").unwrap() + 20;
        content = text.into_bytes();
        content[place] = if content[place] == b'A' { b'B' } else { b'A' };
    }
    let (size, rest) = (content.len(), &content[from..]);
    let sent = match manner {
        // Until the agent hangs up.
        Manner::Silent => return drop(stream.read(&mut [0])),
        Manner::Breaking(bytes) | Manner::AlteringAndBreaking(bytes) => &rest[..rest.len().min(bytes)],
        _ => rest,
    };
    let status = match from {
        0 => "200 OK".to_owned(),
        _ => format!("206 Partial Content\r\nContent-Range: bytes {from}-{}/{size}", size - 1),
    };
    let head = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", rest.len());
    let _ = stream.write_all(head.as_bytes()).and_then(|()| match manner {
        Manner::Dripping => sent.chunks(1).try_for_each(|byte| {
            std::thread::sleep(Duration::from_millis(250));
            stream.write_all(byte)
        }),
        _ => stream.write_all(sent),
    });
}
