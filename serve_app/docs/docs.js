/** The API's description, with the key that the page of calls has asked for, or that is given here. */

const KEY = "seedvc.key"; // as in the page's api.js: this window keeps it until it is closed
const $ = (id) => document.getElementById(id);

function show() {
  SwaggerUIBundle({
    url: new URL("openapi.json", document.baseURI).href,
    dom_id: "#swagger-ui",
    deepLinking: true,
    validatorUrl: null,
    requestInterceptor: (request) => {
      const key = sessionStorage.getItem(KEY);
      if (key) request.headers["xi-api-key"] = key;
      return request;
    },
    responseInterceptor: (response) => {
      if (response.status === 401) $("key-form").hidden = false;
      return response;
    },
  });
}

$("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem(KEY, $("key").value);
  $("key-form").hidden = true;
  show();
});
show();
