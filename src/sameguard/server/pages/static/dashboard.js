// Replaces the page's content every few seconds while somebody looks. Without it, reloading the page does the same.
"use strict";

const PERIOD = 5000;

async function refresh() {
  if (document.hidden) return;
  const stale = document.getElementById("stale");
  try {
    const answer = await fetch(location.href, { cache: "no-store" });
    if (!answer.ok) throw new Error(String(answer.status));
    const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
    const before = document.querySelector(".scroll");
    const [left, top] = [before?.scrollLeft ?? 0, before?.scrollTop ?? 0];
    for (const id of ["page", "clock"]) {
      document.getElementById(id).replaceWith(document.adoptNode(fresh.getElementById(id)));
    }
    document.querySelector(".scroll")?.scrollTo(left, top);
    stale.hidden = true;
  } catch {
    stale.hidden = false;
  }
}

setInterval(refresh, PERIOD);
