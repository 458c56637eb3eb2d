"use strict";
// Uses a link: its token is behind the `#`, where no server and no log sees it, and leaves in the body of one request.
(() => {
  const [purpose, token] = location.hash.slice(1).split("=");
  const steps = {
    set_up: ["Set up this server", "You become the first person, who administers it.", "/api/v1/setup"],
    choose_password: ["Choose a password", "Every session of yours ends.", "/api/v1/auth/choose-password"],
    verify_email: ["Confirm your address", "", "/api/v1/auth/verify-email"],
    join: ["Join", "If you have an account, sign in first, then follow the link again; a name and a password are for those who have none.", "/api/v1/auth/join"],
    revoke: ["This was not me", "Every session, token and key of your account ends, what was added to it since the letter is taken away, and you choose another password by a letter.", "/api/v1/auth/revoke-account"],
    forgotten: ["Forgotten password", "You get a letter with a link.", "/api/v1/auth/password-reset"],
  };
  const step = Object.hasOwn(steps, purpose) ? steps[purpose] : null;
  const at = (id) => document.getElementById(id);
  if (!step) {
    at("text").textContent = "This is no link of ours: open it from the letter or the log once more.";
    return;
  }
  [at("title").textContent, at("text").textContent] = step;
  const form = at("form");
  for (const label of form.querySelectorAll("label")) {
    if (!label.dataset.for.split(" ").includes(purpose)) label.remove();
  }
  form.hidden = false;
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const body = Object.fromEntries([...new FormData(form)].filter(([, value]) => value !== ""));
    if (token) body.token = token;
    if (purpose === "set_up") {
      body.organization = { slug: body.slug };
      delete body.slug;
    }
    const answer = at("answer");
    answer.textContent = "…";
    try {
      const response = await fetch(step[2], {
        method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body), credentials: "same-origin",
      });
      if (response.ok) {
        form.remove();
        answer.textContent = "Done. You can close this page.";
        history.replaceState(null, "", location.pathname);
      } else {
        answer.textContent = (await response.json()).detail;
      }
    } catch {
      answer.textContent = "The server does not answer: try again.";
    }
  });
})();
