// Objects are looked up in their prototypes. Whoever changes a prototype changes what everybody finds who shares it.

globalThis.results = attack({
  'listen in on a method that the preload script uses': () => {
    const { join } = Array.prototype;
    let heard;
    Array.prototype.join = function (...args) {
      heard = this[2];
      return join.apply(this, args);
    };
    window.api.sign('a letter');
    Array.prototype.join = join;
    return there(heard);
  },
  'be an admin, by settings that are merged': () => {
    window.api.configure(JSON.parse('{"__proto__": {"admin": true}}'));
    return there(window.api.mayErase() || null) && 'an admin';
  },
});
