//! The functions of `wasi:http/types` that keep what a guest hands over: header fields, the parts of a request's line, bodies. A guest
//! may hold a thousand handles and send none of them, so what they keep is counted, from the first byte, against the budget of what the host copies.

use http::HeaderMap;
use wasmtime::StoreContextMut;
use wasmtime::component::{Linker, Resource};
use wasmtime_wasi_http::p2::HeaderResult;
use wasmtime_wasi_http::p2::bindings::http::types::{
    HeaderError, HostFields as _, HostOutgoingRequest as Requests, HostOutgoingResponse as Responses, Method, Scheme,
};
use wasmtime_wasi_http::p2::body::HostOutgoingBody;
use wasmtime_wasi_http::p2::types::{HostOutgoingRequest, HostOutgoingResponse};
use wasmtime_wasi_http::{FieldMap, WasiHttpView as _};

use super::{BODY_BUFFER_CHUNKS, BODY_CHUNK_BYTES};
use crate::guest::Guest;

/// The interface, by the name under which its other functions are linked.
const TYPES: &str = "wasi:http/types@0.2.12";
/// What one field takes in a map of the host besides its name and value, rounded up.
const FIELD_OVERHEAD_BYTES: usize = 128;
/// Bytes of a method's name, as grants write it.
const METHOD_BYTES_MAX: usize = bulkhead_model::grant::METHOD_BYTES_MAX;
/// What one body's channel may hold: the chunks it buffers, and the one that waits for room.
const BODY_BYTES: usize = BODY_CHUNK_BYTES * (BODY_BUFFER_CHUNKS + 1);

type Context<'a> = StoreContextMut<'a, Guest>;
type Fields = Resource<FieldMap>;
type Request = Resource<HostOutgoingRequest>;
type Response = Resource<HostOutgoingResponse>;
type Body = Resource<HostOutgoingBody>;

/// What a function of the interface answers: a value that the guest sees, or a trap.
type Answer<T, E> = wasmtime::Result<(Result<T, E>,)>;

/// Puts the weighed functions in the place of those that are linked already.
pub(super) fn link(linker: &mut Linker<Guest>) -> wasmtime::Result<()> {
    linker.allow_shadowing(true);
    let mut types = linker.instance(TYPES)?;
    types.func_wrap("[static]fields.from-list", from_list)?;
    types.func_wrap("[method]fields.set", set)?;
    types.func_wrap("[method]fields.append", append)?;
    types.func_wrap("[method]fields.clone", clone)?;
    types.func_wrap("[method]outgoing-request.set-method", set_method)?;
    types.func_wrap("[method]outgoing-request.set-scheme", set_scheme)?;
    types.func_wrap("[method]outgoing-request.set-authority", set_authority)?;
    types.func_wrap("[method]outgoing-request.set-path-with-query", set_path)?;
    types.func_wrap("[method]outgoing-request.body", request_body)?;
    types.func_wrap("[method]outgoing-response.body", response_body)?;
    linker.allow_shadowing(false);
    Ok(())
}

/// An error that the guest may see, or a trap.
fn told<T>(result: HeaderResult<T>) -> Answer<T, HeaderError> {
    match result {
        Ok(value) => Ok((Ok(value),)),
        Err(error) => Ok((Err(error.downcast()?),)),
    }
}

fn fields_bytes(map: &HeaderMap) -> usize {
    map.iter().map(|(name, value)| name.as_str().len() + value.len() + FIELD_OVERHEAD_BYTES).sum()
}

fn from_list(mut context: Context<'_>, (entries,): (Vec<(String, Vec<u8>)>,)) -> Answer<Fields, HeaderError> {
    let guest = context.data_mut();
    let bytes = entries.iter().map(|(name, value)| name.len() + value.len() + FIELD_OVERHEAD_BYTES).sum();
    guest.scope.host_call(bytes)?;
    told(guest.http().from_list(entries))
}

fn set(mut context: Context<'_>, (fields, name, values): (Fields, String, Vec<Vec<u8>>)) -> Answer<(), HeaderError> {
    let guest = context.data_mut();
    let bytes: usize = values.iter().map(|value| value.len() + FIELD_OVERHEAD_BYTES).sum();
    guest.scope.host_call(name.len() + bytes)?;
    told(guest.http().set(fields, name, values))
}

fn append(mut context: Context<'_>, (fields, name, value): (Fields, String, Vec<u8>)) -> Answer<(), HeaderError> {
    let guest = context.data_mut();
    guest.scope.host_call(name.len() + value.len() + FIELD_OVERHEAD_BYTES)?;
    told(guest.http().append(fields, name, value))
}

/// A clone shares its content until it is changed, and is then copied as a whole.
fn clone(mut context: Context<'_>, (fields,): (Fields,)) -> wasmtime::Result<(Fields,)> {
    let guest = context.data_mut();
    let bytes = fields_bytes(guest.table.get(&fields)?);
    guest.scope.host_call(bytes)?;
    Ok((guest.http().clone(fields)?,))
}

fn set_method(mut context: Context<'_>, (request, method): (Request, Method)) -> Answer<(), ()> {
    let guest = context.data_mut();
    if let Method::Other(name) = &method {
        guest.scope.host_call(name.len())?;
        if name.len() > METHOD_BYTES_MAX {
            return Ok((Err(()),));
        }
    }
    Ok((guest.http().set_method(request, method)?,))
}

fn set_scheme(mut context: Context<'_>, (request, scheme): (Request, Option<Scheme>)) -> Answer<(), ()> {
    let guest = context.data_mut();
    if let Some(Scheme::Other(name)) = &scheme {
        guest.scope.host_call(name.len())?;
    }
    Ok((guest.http().set_scheme(request, scheme)?,))
}

fn set_authority(mut context: Context<'_>, (request, authority): (Request, Option<String>)) -> Answer<(), ()> {
    let guest = context.data_mut();
    guest.scope.host_call(authority.as_ref().map_or(0, String::len))?;
    Ok((guest.http().set_authority(request, authority)?,))
}

fn set_path(mut context: Context<'_>, (request, path): (Request, Option<String>)) -> Answer<(), ()> {
    let guest = context.data_mut();
    guest.scope.host_call(path.as_ref().map_or(0, String::len))?;
    Ok((guest.http().set_path_with_query(request, path)?,))
}

fn request_body(mut context: Context<'_>, (request,): (Request,)) -> Answer<Body, ()> {
    let guest = context.data_mut();
    guest.scope.host_call(BODY_BYTES)?;
    Ok((Requests::body(&mut guest.http(), request)?,))
}

fn response_body(mut context: Context<'_>, (response,): (Response,)) -> Answer<Body, ()> {
    let guest = context.data_mut();
    guest.scope.host_call(BODY_BYTES)?;
    Ok((Responses::body(&mut guest.http(), response)?,))
}
