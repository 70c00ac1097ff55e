//! Embeddings, the plain JSON endpoints, models, and requests that are not right.

use crate::*;

#[tokio::test(start_paused = true)]
async fn embeddings_as_numbers_and_as_base64() {
    let sim = Sim::new(options());
    let mut body = json!({"model": "e", "input": ["the tide", "the gate"], "dimensions": 8});
    let floats = post(&sim, "/v1/embeddings", &body).await;
    assert_eq!(floats.took, Duration::from_millis(110), "a list costs a token time per item");
    let floats = floats.json();
    assert_eq!(floats["data"][1]["index"], 1);
    assert_eq!(floats["usage"], json!({"prompt_tokens": 4, "total_tokens": 4}));
    let vector: Vec<f32> = serde_json::from_value(floats["data"][0]["embedding"].clone()).unwrap();
    assert_eq!(vector.len(), 8);
    let length: f32 = vector.iter().map(|part| part * part).sum();
    assert!((length - 1.0).abs() < 1e-4);

    body["encoding_format"] = "base64".into();
    let encoded = post(&sim, "/v1/embeddings", &body).await.json();
    use base64::{Engine as _, engine::general_purpose::STANDARD};
    let bytes = STANDARD.decode(encoded["data"][0]["embedding"].as_str().unwrap()).unwrap();
    let decoded: Vec<f32> =
        bytes.chunks(4).map(|part| f32::from_le_bytes(part.try_into().unwrap())).collect();
    assert_eq!(decoded, vector);
}

#[tokio::test(start_paused = true)]
async fn inference_answers_item_by_item() {
    let sim = Sim::new(options());
    let body = json!({"inputs": ["good", null, {"x": [1]}]});
    let many = post(&sim, "/inference", &body).await.json();
    let outputs = many["outputs"].as_array().unwrap();
    assert_eq!(outputs.len(), 3);
    assert_eq!(outputs[1]["error"], "input 1 is null");
    let one = post(&sim, "/inference", &json!({"input": "good"})).await.json();
    assert_eq!(one["output"], outputs[0], "joined or alone, the same answer");
}

#[tokio::test(start_paused = true)]
async fn images_are_analyzed() {
    let sim = Sim::new(options());
    let body = json!({"image": "data:image/gif;base64,R0lGODlhBQAGAA==",
                      "features": ["labels", "objects", "text", "faces", "colors", "safe"]});
    let answer = post(&sim, "/v1/analyze", &body).await.json();
    assert_eq!(answer["image"]["format"], "gif");
    assert_eq!((&answer["image"]["width"], &answer["image"]["height"]), (&5.into(), &6.into()));
    assert_eq!(answer["features"].as_object().unwrap().len(), 6);
    assert_eq!(answer["features"]["objects"][0]["box"].as_array().unwrap().len(), 4);
}

#[tokio::test(start_paused = true)]
async fn recommendations_are_per_user() {
    let sim = Sim::new(options());
    let one = post(&sim, "/recommend", &json!({"user_id": "u1", "limit": 3})).await.json();
    assert_eq!(one["items"].as_array().unwrap().len(), 3);
    let body = json!({"user_ids": ["u1", 7], "limit": 3});
    let many = post(&sim, "/recommend", &body).await.json();
    assert_eq!(many["results"][0], one);
    assert_ne!(many["results"][1]["items"], one["items"]);
}

#[tokio::test(start_paused = true)]
async fn models_are_listed() {
    let sim = Sim::new(Options { strict_models: true, ..options() });
    let list = get(&sim, "/v1/models").await.json();
    assert_eq!(list["data"][0]["id"], "sim-small");
    assert_eq!(get(&sim, "/v1/models/sim-small").await.json(), list["data"][0]);
    let unknown = get(&sim, "/v1/models/gpt-9").await;
    assert_eq!(
        (unknown.status, &unknown.json()["error"]["code"]),
        (404, &"model_not_found".into())
    );
    let mut body = chat("x", 1);
    body["model"] = "gpt-9".into();
    let unknown = ask(&sim, &body).await;
    assert_eq!((unknown.status, &unknown.json()["error"]["param"]), (404, &"model".into()));
    assert_eq!(get(&sim, "/livez").await.body, "ok\n");
    assert_eq!(get(&sim, "/v1/nothing").await.status, 404);
    assert_eq!(get(&sim, "/v1/chat/completions").await.status, 404);
}

#[tokio::test(start_paused = true)]
async fn bad_requests_are_refused_in_openais_words() {
    let sim = Sim::new(Options { max_body_bytes: 200, ..options() });
    let refused = ask(&sim, &json!({"model": "m"})).await;
    assert_eq!(refused.status, 400);
    let error = json!({"error": {"message": "Missing required parameter: 'messages'.",
        "type": "invalid_request_error", "param": "messages", "code": null}});
    assert_eq!(refused.json(), error);
    assert_eq!(ask(&sim, &chat(&"x".repeat(200), 1)).await.status, 413);
    let request =
        Request::post("/v1/embeddings").header("host", "sim").body("{\n!".into()).unwrap();
    let broken = finish(send(&sim, request).await.unwrap(), Instant::now()).await;
    let error = broken.json();
    assert_eq!((broken.status, &error["error"]["code"]), (400, &"invalid_json".into()));
    assert!(error["error"]["message"].as_str().unwrap().contains("line 2 column 1"));
}
