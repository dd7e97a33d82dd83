// What the report needs of Vega: compile a Vega-Lite specification and draw it as SVG, without eval.
export { compile } from "vega-lite";
export { parse, View } from "vega";
export { expressionInterpreter } from "vega-interpreter";
