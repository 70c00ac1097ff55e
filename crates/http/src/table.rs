//! Where a port's paths are: one table for each port, from which requests find their way and
//! whoever must know all of them (documents, the test of who may do what) learns them.

use crate::routes::NoRoute;
use hyper::Method;

/// One path, and what each method does there. `HEAD` goes wherever `GET` does.
pub(crate) struct At<T: 'static> {
    /// `{name}` stands for one segment, `{+name}` for all that is left, which is something.
    pub(crate) path: &'static str,
    pub(crate) ways: &'static [(Method, T)],
}

/// A path of one of the ports, as it is written in the table of its routes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// The path; `{name}` stands for one segment, `{+name}` for all that is left.
    pub path: &'static str,
    /// What it takes, as the `Allow` header says it: `GET, HEAD`.
    pub methods: String,
}

/// What `method` does at `path`, and what stands there in the place of a name.
pub(crate) fn find<'p, T: Copy>(
    table: &[At<T>],
    method: &Method,
    path: &'p str,
) -> Result<(T, &'p str), NoRoute> {
    // The paths of calls are the first ones, and are compared whole.
    let whole = table.iter().find(|at| at.path == path && !path.contains('{'));
    let (at, name) = whole
        .map(|at| (at, ""))
        .or_else(|| table.iter().find_map(|at| Some((at, name(at.path, path)?))))
        .ok_or(NoRoute::Path)?;
    let asked = if method == Method::HEAD { &Method::GET } else { method };
    let way = at.ways.iter().find(|(its, _)| its == asked);
    way.map(|(_, way)| (*way, name)).ok_or_else(|| NoRoute::Method(at.methods()))
}

/// All of `table`.
pub(crate) fn list<T>(table: &[At<T>]) -> Vec<Listed> {
    table.iter().map(|at| Listed { path: at.path, methods: at.methods() }).collect()
}

impl<T> At<T> {
    fn methods(&self) -> String {
        let mut methods: Vec<&str> = self.ways.iter().map(|(method, _)| method.as_str()).collect();
        if methods.contains(&"GET") {
            methods.push("HEAD");
        }
        methods.sort_unstable();
        methods.join(", ")
    }
}

/// What stands in `path` where `pattern` has a name.
fn name<'p>(pattern: &str, path: &'p str) -> Option<&'p str> {
    let (before, rest) = pattern.split_once('{')?;
    let (its, after) = rest.split_once('}')?;
    let name = path.strip_prefix(before)?.strip_suffix(after)?;
    (!name.is_empty() && (its.starts_with('+') || !name.contains('/'))).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &[At<u8>] = &[
        At { path: "/a", ways: &[(Method::POST, 1)] },
        At { path: "/a/{id}", ways: &[(Method::GET, 2), (Method::DELETE, 3)] },
        At { path: "/a/{id}/b", ways: &[(Method::POST, 4)] },
        At { path: "/c/{+name}", ways: &[(Method::GET, 5)] },
    ];

    #[test]
    fn a_path_is_found_with_the_name_in_it() {
        let refused = |methods: &str| Err(NoRoute::Method(methods.to_owned()));
        for (method, path, found) in [
            (Method::POST, "/a", Ok((1, ""))),
            (Method::HEAD, "/a", refused("POST")),
            (Method::GET, "/a/x", Ok((2, "x"))),
            (Method::HEAD, "/a/x", Ok((2, "x"))),
            (Method::DELETE, "/a/x", Ok((3, "x"))),
            (Method::POST, "/a/x", refused("DELETE, GET, HEAD")),
            (Method::POST, "/a/x/b", Ok((4, "x"))),
            (Method::POST, "/a//b", Err(NoRoute::Path)),
            (Method::POST, "/a/b", refused("DELETE, GET, HEAD")),
            (Method::GET, "/a/x/c", Err(NoRoute::Path)),
            (Method::GET, "/a/", Err(NoRoute::Path)),
            (Method::GET, "/c/x/y", Ok((5, "x/y"))),
            (Method::GET, "/c/", Err(NoRoute::Path)),
            (Method::GET, "/c", Err(NoRoute::Path)),
            (Method::GET, "/a/{id}", Ok((2, "{id}"))),
            (Method::GET, "", Err(NoRoute::Path)),
        ] {
            assert_eq!(find(TABLE, &method, path), found, "{method} {path}");
        }
        let listed = list(TABLE);
        assert_eq!((listed[1].path, &*listed[1].methods), ("/a/{id}", "DELETE, GET, HEAD"));
    }
}
